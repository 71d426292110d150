"""Everything of the plugin but NCCL itself: gloo stands in, and behaves as NCCL does.

One thread is the stream: it runs batches one after the other. A batch has one work, which does not
say which of its messages fails; messages of a pair of ranks match by order, tags do not travel.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import torch.distributed as dist
from ringspan.contracts import Availability, DeviceInfo
from ringspan_nccl import Nccl, NcclSettings
from ringspan_nccl.carrier import Carrier, Membership, Work
from ringspan_nccl.order import MAX_OPERATIONS
from ringspan_nccl.parcels import Parcel


class Batch:
    """The work of one batch: an event, and the error with which it ended."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.error: RuntimeError | None = None

    def is_completed(self) -> bool:
        return self.done.is_set()

    def wait(self) -> None:
        self.done.wait()
        if self.error is not None:
            raise RuntimeError(str(self.error))


class GlooCarrier:
    """A stream of batches over gloo."""

    deaf: ClassVar[bool] = False
    """As NCCL on one machine: a connection that closes is no error, and nothing arrives."""

    def __init__(self, membership: Membership) -> None:
        self.membership = membership
        self.aborted = False
        self._backend: Any = dist.ProcessGroupGloo(
            membership.store, membership.rank, membership.world_size, membership.timeout
        )
        self._given: queue.SimpleQueue[tuple[Sequence[Parcel], Batch]] = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    def warm_up(self) -> Work:
        work: Work = self._backend.barrier()
        return work

    def start(self, batch: Sequence[Parcel]) -> Work:
        assert 0 < len(batch) <= MAX_OPERATIONS
        work = Batch()
        self._given.put((batch, work))
        return work

    def abort(self) -> None:
        self.aborted = True

    def _run(self) -> None:
        while True:
            batch, work = self._given.get()
            try:
                for each in [self._hand(parcel) for parcel in batch]:
                    each.wait()
            except RuntimeError as error:
                if self.deaf:
                    return
                work.error = error
            work.done.set()

    def _hand(self, parcel: Parcel) -> Any:
        ticket = parcel.ticket
        act = self._backend.send if ticket.direction == "send" else self._backend.recv
        return act([parcel.content], ticket.peer, 0)


class DeafCarrier(GlooCarrier):
    deaf = True


class BrokenCarrier(GlooCarrier):
    """Starts nothing, and cannot even be ended."""

    def start(self, batch: Sequence[Parcel]) -> Work:
        raise RuntimeError("ncclInvalidUsage: unmatched")

    def abort(self) -> None:
        raise RuntimeError("stuck")


class MuteCarrier(GlooCarrier):
    """Its ranks never find each other."""

    def warm_up(self) -> Work:
        return Batch()


class UnconnectedCarrier(GlooCarrier):
    """Finds out that its ranks cannot be connected."""

    def warm_up(self) -> Work:
        raise RuntimeError("no route to host")


class OverGloo(Nccl):
    """The communicator over gloo."""

    name: ClassVar[str] = "nccl-over-gloo"
    device_type: ClassVar[str] = "cpu"
    backend: ClassVar[str] = "gloo"
    carrier: ClassVar[type[Carrier]] = GlooCarrier

    def __init__(self, *, run_ahead: int = 8, blocking: bool = True) -> None:
        # A CPU has no stream that could wait in the host's place.
        self.chosen = NcclSettings(run_ahead=run_ahead, blocking=blocking)

    @property
    def _configured(self) -> NcclSettings:
        return self.chosen

    def probe(self, device: DeviceInfo) -> Availability:
        if device.type != "cpu":
            return Availability.no(f"{device.type} device (supported: cpu)")
        return Availability.yes("over gloo")


class Deaf(OverGloo):
    """The same, not noticing who is gone."""

    carrier: ClassVar[type[Carrier]] = DeafCarrier


class Broken(OverGloo):
    carrier: ClassVar[type[Carrier]] = BrokenCarrier


class Mute(OverGloo):
    carrier: ClassVar[type[Carrier]] = MuteCarrier


class Unconnected(OverGloo):
    carrier: ClassVar[type[Carrier]] = UnconnectedCarrier
