"""The exchange: hands messages to torch and keeps them alive until they are waited for.

Every tensor travels as bytes, so any dtype does. Receives are posted before sends, so that a
large message finds its destination and no two ranks wait for each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from ringspan.contracts import Exchange, InvalidArgument, Message, Pending, RingError

from ringspan_isend.checks import Direction, Ticket, check_tags, check_tensor
from ringspan_isend.route import Route

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

__all__ = ["IsendExchange"]

MAX_GROUPED = 256
"""NCCL has been seen to hang on larger groups of operations."""


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A message as handed to torch: its bytes, and where they go once received."""

    ticket: Ticket
    content: Tensor
    destination: Tensor | None = None
    """Where a staged receive is copied on arrival."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """Parcels in flight together, with the works that carry them."""

    works: Sequence[dist.Work]
    parcels: Sequence[_Parcel]


class IsendExchange(Exchange):
    """Messages between the ranks of one group, by one isend and one irecv each."""

    def __init__(self, group: dist.ProcessGroup, device: torch.device, route: Route) -> None:
        self.group = group
        self.device = device
        self.route = route
        self.rank = dist.get_rank(group)
        self.world_size = dist.get_world_size(group)
        self.in_flight: set[Ticket] = set()
        if route is Route.GROUPED:
            # The first messages of an NCCL communicator hang unless all ranks take part.
            dist.all_reduce(torch.zeros(1, device=device), group=group)

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Starts all messages and returns; staged sends are copied to the host before that.

        Empty tensors do not travel. Tags say which messages belong together, in whatever order
        each side posts them (over NCCL: within one call).

        Errors:
            InvalidArgument: a peer outside the group or this rank itself; a tensor that is
                not contiguous or on another device; a tag already in flight with that peer.
            RingError: torch could not start a message.
        """
        tickets = self._check("receives", "receive", receives)
        tickets |= self._check("sends", "send", sends)
        parcels = chain(self._parcels("receive", receives), self._parcels("send", sends))
        pending = _IsendPending(self)
        if self.route is Route.GROUPED:
            self._start_together(pending, list(parcels))
        else:
            for parcel in parcels:
                self._start(pending, parcel)
        self.in_flight |= tickets
        self.bytes_sent += sum(message.tensor.nbytes for message in sends)
        self.bytes_received += sum(message.tensor.nbytes for message in receives)
        return pending

    def failed(self, parcels: Sequence[_Parcel], error: RuntimeError) -> RingError:
        """What to raise when torch could not carry `parcels`."""
        return RingError(
            f"rank {self.rank} of {self.world_size}",
            expected=", ".join(f"{parcel.ticket} to complete" for parcel in parcels),
            got=str(error).partition("\n")[0],
            remedy="Look for that peer's own error first; a slow peer needs a longer group timeout",
        )

    def _check(self, name: str, direction: Direction, messages: Sequence[Message]) -> set[Ticket]:
        for index, message in enumerate(messages):
            check_tensor(
                f"{name}[{index}]",
                message,
                rank=self.rank,
                world_size=self.world_size,
                device=self.device,
            )
        return check_tags(name, direction, messages, self.in_flight)

    def _parcels(self, direction: Direction, messages: Sequence[Message]) -> Iterator[_Parcel]:
        for message in messages:
            if not message.tensor.numel():
                continue
            ticket = Ticket(direction, message.peer, message.tag)
            content = _as_bytes(message.tensor)
            if self.route is not Route.STAGED:
                yield _Parcel(ticket, content)
            elif direction == "send":
                yield _Parcel(ticket, _host_buffer(content).copy_(content))
            else:
                yield _Parcel(ticket, _host_buffer(content), destination=content)

    def _start(self, pending: _IsendPending, parcel: _Parcel) -> None:
        _, peer, tag = parcel.ticket
        try:
            if parcel.ticket.direction == "send":
                work = dist.isend(parcel.content, group=self.group, group_dst=peer, tag=tag)
            else:
                work = dist.irecv(parcel.content, group=self.group, group_src=peer, tag=tag)
        except RuntimeError as error:
            raise self.failed([parcel], error) from error
        assert work is not None, "torch returns None only outside the group"
        pending.add(_Flight([work], [parcel]))

    def _start_together(self, pending: _IsendPending, parcels: list[_Parcel]) -> None:
        if len(parcels) > MAX_GROUPED:
            raise InvalidArgument(
                "sends and receives",
                expected=f"at most {MAX_GROUPED} messages in one call over NCCL",
                got=str(len(parcels)),
                remedy="Pack the rows for one peer into one tensor",
            )
        if not parcels:
            return
        # NCCL ignores tags and matches by order: the same order on both sides stands in for them.
        parcels.sort(key=lambda parcel: (parcel.ticket.peer, parcel.ticket.tag))
        try:
            works = dist.batch_isend_irecv([self._operation(parcel) for parcel in parcels])
        except RuntimeError as error:
            raise self.failed(parcels, error) from error
        pending.add(_Flight(works, parcels))

    def _operation(self, parcel: _Parcel) -> dist.P2POp:
        act = dist.isend if parcel.ticket.direction == "send" else dist.irecv
        return dist.P2POp(act, parcel.content, group=self.group, group_peer=parcel.ticket.peer)


class _IsendPending(Pending):
    """Flights that have started, in the order they did."""

    def __init__(self, exchange: IsendExchange) -> None:
        self._exchange = exchange
        self._flights: list[_Flight] = []

    def add(self, flight: _Flight) -> None:
        self._flights.append(flight)

    def wait(self) -> None:
        """Returns when all are done; over NCCL, when the current stream will wait for them.

        Errors:
            RingError: a message failed, or its peer did not answer within the group's timeout.
        """
        while self._flights:
            self._land(self._flights[0])
            del self._flights[0]

    def _land(self, flight: _Flight) -> None:
        try:
            for work in flight.works:
                work.wait()
        except RuntimeError as error:
            raise self._exchange.failed(flight.parcels, error) from error
        for parcel in flight.parcels:
            if parcel.destination is not None:
                parcel.destination.copy_(parcel.content)
            self._exchange.in_flight.discard(parcel.ticket)


def _as_bytes(tensor: Tensor) -> Tensor:
    """The tensor's own memory as `uint8`: no backend need know its dtype."""
    return tensor.detach().reshape(-1).view(torch.uint8)


def _host_buffer(content: Tensor) -> Tensor:
    """Host memory for `content`, page-locked where a device copies to and from it."""
    return torch.empty(content.shape, dtype=content.dtype, pin_memory=content.is_cuda)
