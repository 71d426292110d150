"""What is on its way: kept in order, bounded in number, and watched while the host waits for it."""

from __future__ import annotations

import time
from collections import deque
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ringspan.contracts import PeerLost, RingError

from ringspan_nccl.faults import GONE, Fault, fault_of, silence

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ringspan_nccl.carrier import Carrier, Work
    from ringspan_nccl.parcels import Parcel, Ticket
    from ringspan_nccl.processes import Process

__all__ = ["Flight", "Flights", "happens"]

_PAUSES = 50e-6, 1e-3
"""Seconds between two looks: the first, and the longest."""
_LOOK_AFTER_PEERS = 0.25
"""Seconds after which a rank that waits looks whether its peers are still there."""


@dataclass(slots=True, eq=False)
class Flight:
    """The messages of one call: batches in order, each with the work that carries it."""

    batches: list[tuple[Work, tuple[Ticket, ...]]] = field(default_factory=list)
    parcels: Sequence[Parcel] = ()
    """Kept until the caller has waited: nobody else may hold what is on its way."""

    def has_landed(self) -> bool:
        """Whether every batch has arrived or failed."""
        return all(work.is_completed() for work, _ in self.batches)

    @property
    def waits_for(self) -> tuple[Ticket, ...]:
        """The messages of the first batch that has not arrived: it holds up the others."""
        for work, tickets in self.batches:
            if not work.is_completed():
                return tickets
        return self.batches[-1][1]


class Flights:
    """The flights of one exchange, oldest first: they land in this order."""

    def __init__(
        self, carrier: Carrier, rank: int, processes: Sequence[Process], patience: float
    ) -> None:
        self._carrier, self._rank = carrier, rank
        self._processes, self._patience = processes, patience
        self._queue: deque[Flight] = deque()
        self._failure: RingError | None = None

    def start(self, flight: Flight, batches: Sequence[Sequence[Parcel]]) -> None:
        """Starts batches and puts their flight last."""
        self._queue.append(flight)
        for batch in batches:
            tickets = tuple(parcel.ticket for parcel in batch)
            try:
                flight.batches.append((self._carrier.start(batch), tickets))
            except RuntimeError as error:
                raise self._failed(fault_of(error), tickets) from error

    def make_room(self, most: int) -> None:
        """Waits until fewer than `most` flights are on their way.

        Raises:
            PeerLost, RingTimeout, RingError: the oldest does not land.
        """
        while self._queue and (len(self._queue) >= most or self._queue[0].has_landed()):
            self._land_oldest()

    def land(self, flight: Flight) -> None:
        """Waits, on the host, until `flight` has landed, and so every earlier one."""
        while flight in self._queue:
            self._land_oldest()

    def follow(self, flight: Flight) -> None:
        """Makes the current stream wait for `flight`."""
        for work, tickets in flight.batches:
            try:
                work.wait()
            except RuntimeError as error:
                raise self._failed(fault_of(error), tickets) from error

    def refuse_after_failure(self) -> None:
        """Raises the first failure again: nobody knows what the peers still wait for."""
        if self._failure is not None:
            again = copy(self._failure)
            again.remedy = "Nothing travels since that failure: restart, or make a new group"
            raise again

    def _land_oldest(self) -> None:
        self.refuse_after_failure()
        oldest = self._queue[0]
        deadline = time.monotonic() + self._patience
        try:
            while not happens(oldest.has_landed, min(deadline, _soon())):
                late = oldest.waits_for
                # What a peer sent before it ended may still arrive.
                if self._gone(late) and not happens(oldest.has_landed, _soon()):
                    raise self._failed(GONE, late)
                if time.monotonic() >= deadline:
                    raise self._failed(silence(self._patience), late)
        except RuntimeError as error:
            raise self._failed(fault_of(error), oldest.waits_for) from error
        # Says whether it arrived or failed; a stream that waits for what has arrived does not wait.
        self.follow(oldest)
        self._queue.popleft()

    def _failed(self, fault: Fault, tickets: Sequence[Ticket]) -> RingError:
        """What to raise; from now on nothing travels any more."""
        if fault.kind is PeerLost:
            # The connection closes a moment before the process is seen to be gone.
            happens(lambda: bool(self._gone(tickets)), _soon())
        named = min(self._gone(tickets) or tickets, key=lambda each: each.direction == "send")
        certain = bool(self._gone([named]))
        self._failure = fault.kind.between(
            self._rank,
            named.peer,
            step=named.step,
            direction=named.direction,
            got=fault.got if certain else fault.got + _doubt(named, tickets),
            remedy=fault.remedy,
        )
        self._abort()
        return self._failure

    def _abort(self) -> None:
        try:
            self._carrier.abort()
        except RuntimeError as error:
            assert self._failure is not None
            self._failure.add_note(f"What was on its way could not be ended: {error}")

    def _gone(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        return [ticket for ticket in tickets if self._processes[ticket.peer].is_gone()]


def _soon() -> float:
    return time.monotonic() + _LOOK_AFTER_PEERS


def _doubt(named: Ticket, tickets: Sequence[Ticket]) -> str:
    """Why it may be another peer than the one that is named."""
    others = sorted({ticket.peer for ticket in tickets} - {named.peer})
    if not others:
        return ""
    return f" (it may be rank {others[0]}: NCCL does not tell a batch's messages apart)"


def happens(event: Callable[[], bool], deadline: float) -> bool:
    """Whether `event()` becomes true before `time.monotonic()` reaches `deadline`.

    Looks often at first, then less and less; the last look is at the deadline.
    """
    pause, longest = _PAUSES
    while not event():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(pause, left))
        pause = min(2 * pause, longest)
    return True
