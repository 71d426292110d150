"""The order and the batches in which messages travel, for any set of messages."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringspan_nccl.order import MAX_OPERATIONS, in_batches
from ringspan_nccl.parcels import Parcel, Ticket

NOTHING = torch.empty(0, dtype=torch.uint8)
quick = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.too_slow])


class Letter(NamedTuple):
    """A message as somebody knows it who sees both ends."""

    sender: int
    receiver: int
    tag: int


@st.composite
def calls(draw: st.DrawFn) -> tuple[int, list[Letter]]:
    """A world size, and the messages of one call between its ranks."""
    world_size = draw(st.integers(2, 9))
    rank = st.integers(0, world_size - 1)
    bundle = st.tuples(rank, rank, st.integers(0, 700), st.sampled_from([1, 2, 7, 130, 300]))
    bundles = draw(st.lists(bundle, max_size=12))
    letters = {
        Letter(sender, receiver, tag)
        for sender, receiver, first, count in bundles
        if sender != receiver
        for tag in range(first, first + count)
    }
    return world_size, list(letters)


def batches_of(rank: int, world_size: int, letters: list[Letter]) -> list[list[Letter]]:
    """What `rank` is told of: its own ends of the messages."""
    parcels = [
        Parcel(ticket, NOTHING)
        for each in letters
        for ticket in (
            *([Ticket("send", each.receiver, each.tag)] if each.sender == rank else []),
            *([Ticket("receive", each.sender, each.tag)] if each.receiver == rank else []),
        )
    ]
    return [
        [seen(rank, parcel.ticket) for parcel in batch]
        for batch in in_batches(parcels, rank, world_size)
    ]


def seen(rank: int, ticket: Ticket) -> Letter:
    sends = ticket.direction == "send"
    sender, receiver = (rank, ticket.peer) if sends else (ticket.peer, rank)
    return Letter(sender, receiver, ticket.tag)


@given(calls())
@quick
def test_a_batch_holds_no_more_operations_than_nccl_takes(call: tuple[int, list[Letter]]) -> None:
    world_size, letters = call
    for rank in range(world_size):
        batches = batches_of(rank, world_size, letters)
        assert all(0 < len(batch) <= MAX_OPERATIONS for batch in batches)
        ours = [each for each in letters if rank in (each.sender, each.receiver)]
        assert sorted(each for batch in batches for each in batch) == sorted(ours)


@given(calls())
@quick
def test_both_ends_cut_what_is_between_them_alike(call: tuple[int, list[Letter]]) -> None:
    world_size, letters = call

    def between(rank: int, peer: int) -> list[list[Letter]]:
        batches = batches_of(rank, world_size, letters)
        shared = ([each for each in batch if peer in each[:2]] for batch in batches)
        return [batch for batch in shared if batch]

    for rank in range(world_size):
        for peer in range(rank):
            assert between(rank, peer) == between(peer, rank)


@given(calls())
@quick
def test_whatever_the_messages_every_rank_comes_to_the_end(
    call: tuple[int, list[Letter]],
) -> None:
    """Of what NCCL does: one batch at a time, what goes from one to another matched in order."""
    world_size, letters = call
    left = [batches_of(rank, world_size, letters) for rank in range(world_size)]
    running: list[list[Letter]] = [[] for _ in range(world_size)]
    posted: defaultdict[Letter, int] = defaultdict(int)
    while True:
        finished = [
            rank
            for rank in range(world_size)
            if (running[rank] or left[rank]) and all(posted[each] == 2 for each in running[rank])
        ]
        if not finished:
            break
        for rank in finished:
            running[rank] = left[rank].pop(0) if left[rank] else []
            for each in running[rank]:
                posted[each] += 1
    assert not any(running)
    assert not any(left)


def test_a_step_of_the_ring_is_one_batch() -> None:
    """Everybody sends to the third rank on, and receives from the third rank back."""
    letters = [Letter(rank, (rank + 3) % 8, tag) for rank in range(8) for tag in range(100)]
    for rank in range(8):
        (batch,) = batches_of(rank, 8, letters)
        assert len(batch) == 200
