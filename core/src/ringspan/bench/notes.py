"""What was being done when an error came."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["during", "told"]


@contextmanager
def during(what: str) -> Iterator[None]:
    """Adds a note to any error from within."""
    try:
        yield
    except Exception as error:
        error.add_note(what)
        raise


def told(error: BaseException) -> str:
    """The error with its notes, in one line.

    Example:
        >>> try:
        ...     with during("at lunch"):
        ...         raise ValueError("no soup")
        ... except ValueError as error:
        ...     print(told(error))
        ValueError: no soup (at lunch)
    """
    message = " ".join(str(error).split())
    notes = [f"({note})" for note in getattr(error, "__notes__", [])]
    return " ".join([f"{type(error).__name__}: {message}", *notes])
