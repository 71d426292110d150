"""NCCL as torch offers it: the only part that needs a GPU. Tests put gloo in its place."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch._C._distributed_c10d import Store

    from ringspan_nccl.parcels import Parcel

__all__ = ["Carrier", "Membership", "NcclCarrier", "Work"]


@dataclass(frozen=True, slots=True)
class Membership:
    """This rank's place among those that a carrier connects."""

    rank: int
    """Of the group, as are all peers."""
    world_size: int
    members: tuple[int, ...]
    """The global rank of each rank of the group."""
    store: Store
    """Of these ranks and of this carrier alone."""
    device: torch.device
    timeout: timedelta
    """After which the carrier itself gives up, however roughly."""


class Work(Protocol):
    """A batch on its way."""

    def is_completed(self) -> bool:
        """Whether it has arrived or failed; asks the device, without waiting for it."""

    def wait(self) -> Any:
        """Makes the current stream wait for it.

        Raises:
            RuntimeError: it is known to have failed.
        """


class Carrier(Protocol):
    """Takes batches in order, on one stream."""

    def __init__(self, membership: Membership) -> None: ...

    def warm_up(self) -> Work:
        """Starts what all ranks must do together before the first batch."""

    def start(self, batch: Sequence[Parcel]) -> Work:
        """Starts a batch behind what the current stream has been given so far."""

    def abort(self) -> None:
        """Ends what is on its way, so that nothing waits for it any more."""


class NcclCarrier:
    """A communicator of NCCL of its own, with a stream of high priority.

    Built without `torch.distributed.new_group`, which all processes would have to call. Told to do
    with the members alone (`use_local_synchronization`), it names the group after the number of
    groups that each process knows, which may differ among members; and it splits a default group
    that is bound to devices, for which the others would have to come. Either hangs.
    """

    def __init__(self, membership: Membership) -> None:
        self._device = membership.device
        options: Any = dist.ProcessGroupNCCL.Options(is_high_priority_stream=True)
        options.group_name = "ringspan"
        options._timeout = membership.timeout
        options.global_ranks_in_group = list(membership.members)
        self._backend: Any = dist.ProcessGroupNCCL(
            membership.store, membership.rank, membership.world_size, options
        )
        # Whoever lets go of a ring has read what it received; torch warns of groups left open.
        self._end = weakref.finalize(self, self._backend.abort)

    def warm_up(self) -> Work:
        """A collective: the first grouped messages of a communicator need all of its ranks."""
        work: Work = self._backend.allreduce([torch.ones(1, device=self._device)])
        return work

    def start(self, batch: Sequence[Parcel]) -> Work:
        """One group call: its messages progress together, whatever their order."""
        # torch hangs where the current device is another one.
        with torch.cuda.device(self._device):
            self._backend._start_coalescing()
            try:
                for parcel in batch:
                    ticket = parcel.ticket
                    hand = self._backend.send if ticket.direction == "send" else self._backend.recv
                    hand([parcel.content], ticket.peer, 0)
            finally:
                # Or else every later call of NCCL in this thread would join the group.
                work: Work = self._backend._end_coalescing()
        return work

    def abort(self) -> None:
        """Ends the kernels, so that the device does not wait for ever."""
        self._end()
