"""A communicator of a few lines: one isend and one irecv per message, by way of host memory.

For tests of what is above communicators. The module is also a plugin, as `toy` is.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar, Literal, NamedTuple

import torch
import torch.distributed as dist

from ringspan.contracts import (
    Availability,
    Communicator,
    DeviceInfo,
    Exchange,
    InvalidArgument,
    Message,
    PeerLost,
    Pending,
    RingError,
    RingTimeout,
    hookimpl,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["ToyCommunicator", "ToyExchange", "ringspan_communicators"]


class ToyCommunicator(Communicator):
    """Over any process group that carries host tensors."""

    name: ClassVar[str] = "toy"

    def probe(self, device: DeviceInfo) -> Availability:
        """Always usable."""
        return Availability.yes()

    def priority(self, device: DeviceInfo) -> int:
        """Never chosen where there is another."""
        return -1000

    def open(self, group: dist.ProcessGroup | None, device: torch.device) -> Exchange:
        """An exchange between the ranks of `group`."""
        assert group is not None, "not a virtual communicator"
        return ToyExchange(group, device)


class ToyExchange(Exchange):
    """Every message travels as bytes, through a copy on the host where it is not there already."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device) -> None:
        self.rank, self.world_size = group.rank(), group.size()
        self._group, self._device = group, device

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Receives first: no two ranks wait for each other."""
        for message in (*sends, *receives):
            self._check(message)
        flights = [
            self._start("receive", message) for message in receives if message.tensor.numel()
        ]
        flights += [self._start("send", message) for message in sends if message.tensor.numel()]
        self.bytes_sent += sum(message.tensor.nbytes for message in sends)
        self.bytes_received += sum(message.tensor.nbytes for message in receives)
        return ToyPending(self, flights)

    def error(self, direction: Direction, message: Message, error: RuntimeError) -> RingError:
        """torch raises plain RuntimeErrors; their texts are all there is to go by."""
        kind: type[RingError] = RingError
        if re.search("closed|reset|broken pipe|refused", str(error), re.IGNORECASE):
            kind = PeerLost
        elif re.search("timed out|timeout", str(error), re.IGNORECASE):
            kind = RingTimeout
        return kind.between(
            self.rank, message.peer, step=message.step, direction=direction, got=str(error)
        )

    def _check(self, message: Message) -> None:
        if not 0 <= message.peer < self.world_size or message.peer == self.rank:
            raise InvalidArgument(
                "peer", expected="another rank of the group", got=str(message.peer)
            )
        if not message.tensor.is_contiguous() or message.tensor.device.type != self._device.type:
            raise InvalidArgument(
                "tensor",
                expected=f"a contiguous tensor on {self._device}",
                got=f"strides {message.tensor.stride()} on {message.tensor.device}",
            )

    def _start(self, direction: Direction, message: Message) -> Flight:
        content = message.tensor.detach().reshape(-1).view(torch.uint8)
        host = content.cpu() if direction == "send" else torch.empty_like(content, device="cpu")
        try:
            if direction == "send":
                work = dist.isend(host, group=self._group, group_dst=message.peer, tag=message.tag)
            else:
                work = dist.irecv(host, group=self._group, group_src=message.peer, tag=message.tag)
        except RuntimeError as error:
            raise self.error(direction, message, error) from error
        assert work is not None
        return Flight(direction, message, work, host, content)


Direction = Literal["send", "receive"]


class Flight(NamedTuple):
    """A message with the work that carries it."""

    direction: Direction
    message: Message
    work: dist.Work
    host: Tensor
    content: Tensor


class ToyPending(Pending):
    """Flights that have not landed."""

    def __init__(self, exchange: ToyExchange, flights: list[Flight]) -> None:
        self._exchange, self._flights = exchange, flights

    def wait(self) -> None:
        """One after the other."""
        while self._flights:
            direction, message, work, host, content = self._flights[0]
            try:
                work.wait()
            except RuntimeError as error:
                raise self._exchange.error(direction, message, error) from error
            if direction == "receive":
                content.copy_(host)
            del self._flights[0]


@hookimpl
def ringspan_communicators() -> Sequence[Communicator]:
    """Offers `toy`."""
    return [ToyCommunicator()]
