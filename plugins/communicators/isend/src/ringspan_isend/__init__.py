"""The communicator `isend`: one send and one receive per message, on any process group."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import Communicator, hookimpl

from ringspan_isend.communicator import Isend

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Isend"]


@hookimpl
def ringspan_communicators() -> Sequence[Communicator]:
    """Offers `isend`."""
    return [Isend()]
