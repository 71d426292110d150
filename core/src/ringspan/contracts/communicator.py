"""The contract of a communicator: how rows travel between ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ringspan_registry.provider import Provider

from ringspan.contracts.errors import NotYetSupported

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch import Tensor

__all__ = ["Communicator", "Exchange", "Link", "Message", "Pending"]


@dataclass(frozen=True, slots=True)
class Link:
    """The ring that a communicator is asked to serve: the problem of `reasons_against`."""

    device: str
    """Type of the tensors' device, as in `"cuda"`."""
    world_size: int
    group_backends: str = ""
    """As `torch.distributed.get_backend_config` says, `"cpu:gloo,cuda:nccl"`; empty: not known,
    as in `explain` of a described problem."""
    virtual: bool = False
    """Whether all ranks are this process's own: the shards lie in host memory."""

    def __str__(self) -> str:
        where = "in one process" if self.virtual else self.group_backends or "any process group"
        return f"{self.world_size} ranks, {self.device} tensors, {where}"


@dataclass(frozen=True, slots=True)
class Message:
    """One tensor to or from one peer.

    `tensor` is contiguous and stays untouched until the exchange is waited for. `peer` is a
    rank *of the group*. Messages between the same two ranks in flight at once have different
    tags, from 0 to `2**30 - 1`; both sides give a message the same tag and the same number of
    bytes. `step` of the ring is for errors alone.
    """

    peer: int
    tensor: Tensor
    tag: int
    step: int = 0


class Pending(ABC):
    """Messages in flight."""

    @abstractmethod
    def wait(self) -> None:
        """Returns when every send may be overwritten and every receive is filled.

        On a device with streams: when the current stream will wait for that.

        Raises:
            PeerLost: a peer's process is gone (build it with `PeerLost.between`).
            RingTimeout: a peer did not answer within the group's timeout.
            RingError: a message failed for another reason.
        """


class Exchange(ABC):
    """An open channel between the ranks of one group, for all calls of that group and device."""

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
            PeerLost: a peer's process is already known to be gone.
        """


class Communicator(Provider):
    """Opens exchanges over process groups."""

    virtual: ClassVar[bool] = False
    """Whether it serves virtual ranks, all in this process, instead of a process group."""

    def reasons_against(self, problem: Any) -> Iterable[str]:
        """Every reason why this communicator cannot serve `problem`, a `Link`.

        Here: that ranks are virtual, or that they are not. Override it for more.
        """
        link: Link = problem
        if link.virtual and not self.virtual:
            yield f"{link.world_size} virtual ranks in one process (supported: a process group)"
        if self.virtual and not link.virtual:
            yield f"{link} (supported: virtual ranks of one process)"

    @abstractmethod
    def open(self, group: dist.ProcessGroup | None, device: torch.device) -> Exchange:
        """An exchange for tensors on `device` between the ranks of `group`.

        Asked once per group and device, by all ranks of the group together, so it may be a
        collective. It is used from any thread, one at a time: torch runs backward passes on GPUs
        in threads of its own. A virtual communicator gets no group: both ends of every message are
        posted in one call, all with peer 0, and `post` copies each send into the receive of equal
        tag, between host and device memory. What reaches the device counts as received and what
        leaves it as sent; where the device is the CPU, each copy is both.
        """

    def shards(self, N: int) -> int:
        """Of a virtual communicator: over how many ranks it spreads `N` tokens."""
        raise self._no_virtual_ranks()

    def computes_on(self) -> torch.device:
        """Of a virtual communicator: the device of a call whose tensors all lie on the host."""
        raise self._no_virtual_ranks()

    def _no_virtual_ranks(self) -> NotYetSupported:
        return NotYetSupported(
            f"communicator {self.name!r}", expected="a process group", got="virtual ranks"
        )
