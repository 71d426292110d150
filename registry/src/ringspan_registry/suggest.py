"""Lists of known names for error messages, with the one that was probably meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

__all__ = ["did_you_mean", "listed"]


def listed(names: Iterable[str]) -> str:
    """The names in alphabetical order, or "none"."""
    return ", ".join(sorted(names)) or "none"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question naming the known name closest to `name`; empty where none is close.

    Example:
        >>> did_you_mean("manul", ["manual", "sdpa"])
        "Did you mean 'manual'?"
    """
    spelled = {each.lower(): each for each in sorted(known)}
    close = get_close_matches(name.lower(), spelled, n=1)
    return f"Did you mean {spelled[close[0]]!r}?" if close else ""
