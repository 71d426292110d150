"""The exchange: hands messages to torch and keeps them alive until they have landed.

Every tensor travels as bytes, so any dtype does. Receives are posted before sends, so that a
large message finds its destination and no two ranks wait for each other.

After a failure the exchange refuses to go on, and what was in flight stays in memory as long as
the exchange does: the transport may still write into it.
"""

from __future__ import annotations

from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from ringspan.contracts import (
    Exchange,
    InvalidArgument,
    Message,
    PeerLost,
    Pending,
    RingError,
    RingTimeout,
)

from ringspan_isend.checks import Direction, Ticket, check_tags, check_tensor
from ringspan_isend.diagnosis import Diagnosis, diagnose
from ringspan_isend.route import Route
from ringspan_isend.staging import HostBuffer, HostPool

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["IsendExchange"]

NOBODYS = 2**31 - 1
"""A tag with which nobody sends."""
MAX_GROUPED = 256
"""NCCL has been seen to hang on larger groups of operations."""


@dataclass(frozen=True, slots=True)
class _Parcel:
    """A message as handed to torch."""

    ticket: Ticket
    step: int
    content: Tensor
    """The bytes of the message's own tensor."""
    staged: HostBuffer | None = None
    """The host memory in which a device's bytes travel."""

    @property
    def carried(self) -> Tensor:
        """The bytes that torch sends or fills."""
        return self.content if self.staged is None else self.staged.head(self.content.numel())


@dataclass(frozen=True, slots=True)
class _Flight:
    """Parcels that land together, with the works that carry them: one each, or one for all."""

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
        self.pool = HostPool(device)
        self.in_flight: dict[Ticket, _Flight] = {}
        self.failure: RingError | None = None
        backends = dist.get_backend_config(group).split(",")
        self._over_gloo = route is not Route.GROUPED and "cpu:gloo" in backends
        if route is Route.GROUPED:
            # The first messages of an NCCL communicator hang unless all ranks take part.
            dist.all_reduce(torch.zeros(1, device=device), group=group)

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Starts all messages and returns; staged sends are copied to the host before that.

        Empty tensors do not travel. Tags say which messages belong together, in whatever order
        each side posts them (over NCCL: within one call).

        Raises:
            InvalidArgument: a peer outside the group or this rank itself; a tensor that is
                not contiguous or on another device; a tag already in flight with that peer.
            PeerLost, RingTimeout: torch already knows that the peer is gone, or an earlier message
                failed so: that error again.
            RingError: torch could not start a message.
        """
        self._check("receives", "receive", receives)
        self._check("sends", "send", sends)
        self.refuse_after_failure()
        parcels = [*self._parcels("receive", receives), *self._parcels("send", sends)]
        if self.route is Route.GROUPED:
            flights = self._start_together(parcels)
        else:
            self._wait_for_copies(parcels)
            flights = [self._start(parcel) for parcel in parcels]
        self.bytes_sent += sum(message.tensor.nbytes for message in sends)
        self.bytes_received += sum(message.tensor.nbytes for message in receives)
        return _IsendPending(self, flights)

    def land(self, flight: _Flight) -> None:
        """Waits for a flight and delivers what it carried."""
        for work, parcel in zip(flight.works, flight.parcels, strict=False):
            try:
                work.wait()
            except RuntimeError as error:
                raise self._failed(parcel, error) from error
        for parcel in flight.parcels:
            del self.in_flight[parcel.ticket]
            if parcel.staged is not None:
                if parcel.ticket.direction == "receive":
                    parcel.content.copy_(parcel.carried, non_blocking=True)
                self.pool.give_back(parcel.staged)

    def refuse_after_failure(self) -> None:
        """Raises the first failure again: nobody knows which messages the peers still await."""
        if self.failure is not None:
            again = copy(self.failure)
            again.remedy = "Nothing is sent since that failure; make a new process group"
            raise again

    def _check(self, name: str, direction: Direction, messages: Sequence[Message]) -> None:
        for index, message in enumerate(messages):
            check_tensor(
                f"{name}[{index}]",
                message,
                rank=self.rank,
                world_size=self.world_size,
                device=self.device,
            )
        check_tags(name, direction, messages, self.in_flight.keys())

    def _parcels(self, direction: Direction, messages: Sequence[Message]) -> list[_Parcel]:
        return [self._parcel(direction, each) for each in messages if each.tensor.numel()]

    def _parcel(self, direction: Direction, message: Message) -> _Parcel:
        ticket = Ticket(direction, message.peer, message.tag)
        content = _as_bytes(message.tensor)
        if self.route is not Route.STAGED:
            return _Parcel(ticket, message.step, content)
        parcel = _Parcel(ticket, message.step, content, self.pool.take(content.numel()))
        if direction == "send":
            parcel.carried.copy_(content, non_blocking=True)
        return parcel

    def _wait_for_copies(self, parcels: Sequence[_Parcel]) -> None:
        """Until the device has written what is to be sent: once for all of them."""
        for parcel in reversed(parcels):
            if parcel.staged is not None and parcel.ticket.direction == "send":
                parcel.staged.mark()
                parcel.staged.wait()
                break

    def _start(self, parcel: _Parcel) -> _Flight:
        _, peer, tag = parcel.ticket
        try:
            if parcel.ticket.direction == "send":
                work = dist.isend(parcel.carried, group=self.group, group_dst=peer, tag=tag)
            else:
                work = dist.irecv(parcel.carried, group=self.group, group_src=peer, tag=tag)
        except RuntimeError as error:
            raise self._failed(parcel, error) from error
        assert work is not None, "torch returns None only outside the group"
        return self._flying(_Flight([work], [parcel]))

    def _start_together(self, parcels: list[_Parcel]) -> list[_Flight]:
        if len(parcels) > MAX_GROUPED:
            raise InvalidArgument(
                "sends and receives",
                expected=f"at most {MAX_GROUPED} messages in one call over NCCL",
                got=str(len(parcels)),
                remedy='Use communicator="nccl", or larger messages',
            )
        if not parcels:
            return []
        # NCCL ignores tags and matches by order: the same order on both sides stands in for them.
        parcels.sort(key=lambda parcel: (parcel.ticket.peer, parcel.ticket.tag))
        try:
            works = dist.batch_isend_irecv([self._operation(parcel) for parcel in parcels])
        except RuntimeError as error:
            raise self._failed(parcels[0], error) from error
        return [self._flying(_Flight(works, parcels))]

    def _operation(self, parcel: _Parcel) -> dist.P2POp:
        act = dist.isend if parcel.ticket.direction == "send" else dist.irecv
        return dist.P2POp(act, parcel.carried, group=self.group, group_peer=parcel.ticket.peer)

    def _flying(self, flight: _Flight) -> _Flight:
        self.in_flight.update((parcel.ticket, flight) for parcel in flight.parcels)
        return flight

    def _failed(self, parcel: _Parcel, error: RuntimeError) -> RingError:
        """What to raise when torch could not carry `parcel`; from now on the exchange refuses."""
        found = diagnose(error)
        if self._over_gloo and found.kind is RingTimeout:
            parcel, found = self._lost_meanwhile() or (parcel, found)
        elif self._over_gloo:
            self._hang_up()
        self.failure = found.kind.between(
            self.rank,
            parcel.ticket.peer,
            step=parcel.step,
            direction=parcel.ticket.direction,
            got=found.got,
            remedy=found.remedy,
        )
        return self.failure

    def _lost_meanwhile(self) -> tuple[_Parcel, Diagnosis] | None:
        """A message whose peer died while this rank waited in vain for another one.

        gloo ends all connections of a group at a timeout, so no work is awaited here for long.
        """
        for flight in self.in_flight.values():
            for work in flight.works:
                try:
                    work.wait(timedelta(milliseconds=1))
                except RuntimeError as error:
                    found = diagnose(error)
                    if found.kind is PeerLost:
                        return flight.parcels[0], found
        return None

    def _hang_up(self) -> None:
        """Has gloo end all connections of the group, as it does at a timeout.

        Ranks that wait for this one hear of it at once, and not when this process ends: that may
        take long, and rank 0 may by then have taken the group's store along.
        """
        for peer in range(self.world_size):
            if peer != self.rank:
                # From a peer that is gone already this fails otherwise.
                with suppress(RuntimeError):
                    nothing = torch.empty(1, dtype=torch.uint8)
                    work = dist.irecv(nothing, group=self.group, group_src=peer, tag=NOBODYS)
                    assert work is not None, "torch returns None only outside the group"
                    work.wait(timedelta(milliseconds=1))


class _IsendPending(Pending):
    """Flights that have started, in the order they did."""

    def __init__(self, exchange: IsendExchange, flights: list[_Flight]) -> None:
        self._exchange = exchange
        self._flights = flights

    def wait(self) -> None:
        """Returns when all are done; on a device, when the current stream will wait for them.

        Raises:
            PeerLost: a peer's process is gone.
            RingTimeout: a peer did not answer within the group's timeout.
            RingError: a message failed for another reason.
        """
        while self._flights:
            self._exchange.refuse_after_failure()
            self._exchange.land(self._flights[0])
            del self._flights[0]


def _as_bytes(tensor: Tensor) -> Tensor:
    """The tensor's own memory as `uint8`: no backend need know its dtype."""
    return tensor.detach().reshape(-1).view(torch.uint8)
