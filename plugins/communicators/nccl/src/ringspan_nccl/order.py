"""In which order, and in which batches, do messages travel?

NCCL has no tags: it matches what a rank sends to a peer with what that peer receives from it by
order alone, runs the batches of a rank one after the other, and has been seen to hang on batches of
more than 256 operations. So both ends of a message must put it into the same batch, at the same
place among the messages between the two, from what both of them know: who they are, and which
messages there are between them in this call.

Both know how far apart they stand around the ring. The messages of one distance make a batch: on
every rank these are messages with two peers at most, and a step of the ring, whose messages are all
of one distance, is one batch everywhere. Between two ranks both know all messages and their tags;
they go in order of tag, and a further batch begins after every `PER_PEER` of them.

Batches are numbered alike on all ranks (by call, distance and place), and every rank runs its own
in that order. So the first batch that is not done has begun on both ends of each of its messages:
some batch can always be completed, and nobody waits for ever.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from ringspan_nccl.parcels import Parcel

__all__ = ["MAX_OPERATIONS", "PER_PEER", "in_batches"]

MAX_OPERATIONS = 256
"""In one batch; NCCL has been seen to hang on more."""
PER_PEER = MAX_OPERATIONS // 2
"""Two peers stand at one distance: one on either side."""


def in_batches(parcels: Iterable[Parcel], rank: int, world_size: int) -> list[list[Parcel]]:
    """The batches in which `parcels` of one call travel, in order, each in order.

    Args:
        parcels: of rank `rank`, sends and receives, in any order; no two with equal tickets.
        rank: of the group, as the parcels' peers are.
        world_size: of the group.

    Example:
        >>> [len(batch) for batch in in_batches(parcels_to_both_neighbours, 0, 8)]
        [256, 44]
    """
    between: defaultdict[int, list[Parcel]] = defaultdict(list)
    for parcel in parcels:
        between[parcel.ticket.peer].append(parcel)
    batches: defaultdict[tuple[int, int], list[Parcel]] = defaultdict(list)
    for peer, shared in between.items():
        distance = min((peer - rank) % world_size, (rank - peer) % world_size)
        for place, parcel in enumerate(sorted(shared, key=lambda each: _order(each, rank))):
            batches[distance, place // PER_PEER].append(parcel)
    return [batches[number] for number in sorted(batches)]


def _order(parcel: Parcel, rank: int) -> tuple[int, int]:
    """Orders the messages between two ranks alike on both: by tag, then by sender."""
    ticket = parcel.ticket
    return ticket.tag, rank if ticket.direction == "send" else ticket.peer
