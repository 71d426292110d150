"""The communicator `nccl`: grouped messages in a process group and on a stream of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import Communicator, hookimpl

from ringspan_nccl.communicator import Nccl
from ringspan_nccl.settings import NcclSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Nccl", "NcclSettings"]


@hookimpl
def ringspan_communicators() -> Sequence[Communicator]:
    """Offers `nccl`."""
    return [Nccl()]
