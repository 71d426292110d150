"""The exchange: what is posted, what is counted, and when the host waits."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from ringspan.contracts import Exchange, Message, Pending

from ringspan_nccl.flights import Flight, Flights
from ringspan_nccl.order import in_batches
from ringspan_nccl.parcels import Parcel, Ticket, packed

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from ringspan_nccl.settings import NcclSettings

__all__ = ["NcclExchange"]


class NcclExchange(Exchange):
    """Messages between the ranks of one group, in batches, on one stream.

    Both ends of a message post it in calls that stand in the same order on both: all calls of a
    ring do.
    """

    def __init__(
        self,
        flights: Flights,
        rank: int,
        world_size: int,
        device: torch.device,
        settings: NcclSettings,
    ) -> None:
        self.rank, self.world_size, self.device = rank, world_size, device
        self._flights, self._settings = flights, settings
        self._in_flight: set[Ticket] = set()

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Starts all messages behind what the current stream has been given so far, and returns.

        Before that, waits on the host while too many earlier calls are still on their way.

        Raises:
            InvalidArgument: a peer outside the group or this rank itself; a tensor that is
                not contiguous or on another device; a tag already in flight with that peer.
            PeerLost: a peer of the oldest call on its way is gone.
            RingTimeout: that call did not arrive within the group's timeout.
            RingError: it failed otherwise; or an earlier failure, again.
        """
        parcels = self._packed(sends, receives)
        self._flights.refuse_after_failure()
        flight = Flight(parcels=parcels)
        if parcels:
            self._flights.make_room(self._settings.run_ahead)
            self._flights.start(flight, in_batches(parcels, self.rank, self.world_size))
        self._in_flight |= {parcel.ticket for parcel in parcels}
        self.bytes_sent += sum(message.tensor.nbytes for message in sends)
        self.bytes_received += sum(message.tensor.nbytes for message in receives)
        return _NcclPending(self, flight)

    def finish(self, flight: Flight) -> None:
        """Waits for a flight, as the settings say, and lets go of what it carried."""
        if not flight.parcels:
            return
        self._flights.refuse_after_failure()
        if self._settings.blocking:
            self._flights.land(flight)
        self._flights.follow(flight)
        self._in_flight -= {parcel.ticket for parcel in flight.parcels}
        flight.parcels = ()

    def _packed(self, sends: Sequence[Message], receives: Sequence[Message]) -> list[Parcel]:
        pack = partial(
            packed,
            rank=self.rank,
            world_size=self.world_size,
            device=self.device,
            in_flight=self._in_flight,
        )
        return [*pack("send", sends), *pack("receive", receives)]


class _NcclPending(Pending):
    """The messages of one call."""

    def __init__(self, exchange: NcclExchange, flight: Flight) -> None:
        self._exchange, self._flight = exchange, flight

    def wait(self) -> None:
        """Makes the current stream wait; with the setting `blocking`, the host too.

        Raises:
            PeerLost, RingTimeout, RingError: what is known so far to have failed.
        """
        self._exchange.finish(self._flight)
