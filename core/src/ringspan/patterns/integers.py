"""Integers as patterns take them."""

from __future__ import annotations

from ringspan.contracts.errors import InvalidArgument

__all__ = ["LARGEST", "checked_integer"]

LARGEST = 2**53
"""Beyond any sequence, and far enough from the end of int64 that sums with positions stay exact."""


def checked_integer(name: str, value: object, *, least: int = 1) -> int:
    """`value` as a plain integer of at least `least` and at most `LARGEST`.

    Raises:
        InvalidArgument: it is not; names the argument.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidArgument(name, expected=f"an integer >= {least}", got=repr(value))
    if value > LARGEST:
        raise InvalidArgument(name, expected="an integer <= 2**53", got=repr(value))
    # int(): an IntEnum is an integer, but its text is not.
    return int(value)
