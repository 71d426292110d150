"""A communicator whose messages take their time: what a slow link does, by the clock.

The module is also a plugin: `plugged_in("delayed", "ringspan.testing.delayed")` offers it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, ClassVar

from ringspan.contracts import Availability, Communicator, DeviceInfo, Exchange, Pending, hookimpl
from ringspan.testing.toy_communicator import ToyCommunicator

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    import torch.distributed as dist

    from ringspan.contracts import Message

__all__ = ["Delayed", "DelayedExchange", "ringspan_communicators"]


class Delayed(Communicator):
    """Another communicator over a link that is slow by a set time.

    Attributes:
        inner: carries the messages.
        seconds: from the moment messages are posted until they are there, at least.
        bytes_per_second: of a wire that carries one call's messages after another's, the larger
            direction of each; None: any number of them at once.

    They may be changed at any time, for messages that are posted afterwards.

    Example:
        >>> delayed = Delayed()
        >>> delayed.seconds = 0.01
        >>> exchange = delayed.open(group, torch.device("cpu"))
    """

    name: ClassVar[str] = "delayed"

    def __init__(self) -> None:
        self.inner: Communicator = ToyCommunicator()
        self.seconds = 0.0
        self.bytes_per_second: float | None = None

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable where `inner` is."""
        return self.inner.probe(device)

    def priority(self, device: DeviceInfo) -> int:
        """Only chosen by name."""
        return -1000

    def open(self, group: dist.ProcessGroup | None, device: torch.device) -> DelayedExchange:
        """An exchange of `inner`, delayed."""
        return DelayedExchange(self, self.inner.open(group, device))


class DelayedExchange(Exchange):
    """An exchange whose messages arrive no earlier than they would over the slow link."""

    def __init__(self, link: Delayed, inner: Exchange) -> None:
        self._link, self._inner = link, inner
        self.rank, self.world_size = inner.rank, inner.world_size
        self._free_at = 0.0

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Starts the messages at once, and the clock with them."""
        pending = self._inner.post(sends, receives)
        self.bytes_sent, self.bytes_received = self._inner.bytes_sent, self._inner.bytes_received
        return _DelayedPending(pending, self._due(sends, receives))

    def _due(self, sends: Sequence[Message], receives: Sequence[Message]) -> float:
        nbytes = max(sum(each.tensor.nbytes for each in way) for way in (sends, receives))
        start = time.monotonic()
        if not nbytes:
            return start
        if self._link.bytes_per_second is not None:
            start = max(start, self._free_at) + nbytes / self._link.bytes_per_second
            self._free_at = start
        return start + self._link.seconds


class _DelayedPending(Pending):
    def __init__(self, inner: Pending, due: float) -> None:
        self._inner, self._due = inner, due

    def wait(self) -> None:
        """Sleeps until the set time has passed; the processor is free meanwhile."""
        self._inner.wait()
        time.sleep(max(0.0, self._due - time.monotonic()))


@hookimpl
def ringspan_communicators() -> Sequence[Communicator]:
    """Offers `delayed`."""
    return [Delayed()]
