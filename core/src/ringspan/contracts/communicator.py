"""The contract of a communicator: how rows travel between ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringspan_registry.provider import Provider

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch import Tensor

__all__ = ["Communicator", "Exchange", "Message", "Pending"]


@dataclass(frozen=True, slots=True)
class Message:
    """One tensor to or from one peer.

    `tensor` is contiguous and stays untouched until the exchange is waited for. `peer` is a
    rank *of the group*. Messages between the same two ranks in flight at once have different
    tags; both sides give a message the same tag and the same number of bytes.
    """

    peer: int
    tensor: Tensor
    tag: int


class Pending(ABC):
    """Messages in flight."""

    @abstractmethod
    def wait(self) -> None:
        """Returns when every send may be overwritten and every receive is filled.

        Raises:
            RingError: a message failed, or its peer did not answer within the group's timeout.
        """


class Exchange(ABC):
    """An open channel between the ranks of one group."""

    rank: int
    world_size: int
    bytes_sent: int = 0
    bytes_received: int = 0

    @abstractmethod
    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Starts all messages and returns at once. Adds their sizes to the byte counts.

        Raises:
            InvalidArgument: before anything is posted: a peer that is not another rank of the
                group, or a tensor that is not contiguous or on another device.
        """


class Communicator(Provider):
    """Opens exchanges over process groups."""

    @abstractmethod
    def open(self, group: dist.ProcessGroup, device: torch.device) -> Exchange:
        """An exchange for tensors on `device` between the ranks of `group`."""
