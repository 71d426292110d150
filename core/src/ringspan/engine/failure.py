"""What a rank says when a message failed."""

from __future__ import annotations

from typing import Any

from ringspan.contracts.errors import RingError

__all__ = ["witnessed"]


def witnessed(group: Any, error: RingError, facts: dict[str, str]) -> RingError:
    """The error to raise."""
    return error
