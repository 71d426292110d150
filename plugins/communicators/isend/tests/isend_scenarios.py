"""What each rank does in a test of `isend` alone, and communicators that go wrong."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ringspan.contracts import Exchange, InvalidArgument, Message, Pending, RingError
from ringspan_isend import Isend
from ringspan_isend.exchange import IsendExchange
from ringspan_isend.route import Route

CPU = torch.device("cpu")


def everyone() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


def neighbours(exchange: Exchange) -> tuple[int, int]:
    """The rank that this one sends to, and the one that it receives from."""
    size = exchange.world_size
    return (exchange.rank + 1) % size, (exchange.rank - 1) % size


def swap_keys_and_values(exchange: Exchange) -> None:
    """Everybody posts key then value, and expects value then key."""
    above, below = neighbours(exchange)
    key, value = torch.full((4,), 1.0), torch.full((4,), 2.0)
    got_key, got_value = torch.empty(4), torch.empty(4)
    exchange.post(
        [Message(above, key, tag=1), Message(above, value, tag=2)],
        [Message(below, got_value, tag=2), Message(below, got_key, tag=1)],
    ).wait()
    assert torch.equal(got_key, key)
    assert torch.equal(got_value, value)


def grouped_messages_match_by_tag_too(rank: int) -> None:
    # gloo stands in for NCCL: with one tag for all, it matches messages in posting order.
    swap_keys_and_values(IsendExchange(everyone(), CPU, Route.GROUPED))


def too_many_grouped_messages_are_refused(rank: int) -> None:
    exchange = IsendExchange(everyone(), CPU, Route.GROUPED)
    above, _ = neighbours(exchange)
    with pytest.raises(InvalidArgument, match="at most 256 messages"):
        exchange.post([Message(above, torch.ones(1), tag) for tag in range(257)], [])


def staged_messages_arrive_where_they_were_wanted(rank: int) -> None:
    # Host tensors stand in for a device's: the way through host memory is the same.
    exchange = IsendExchange(everyone(), CPU, Route.STAGED)
    above, below = neighbours(exchange)
    for dtype in (torch.float32, torch.bfloat16):
        sent = torch.full((7, 2), float(rank)).to(dtype)
        received = torch.empty(7, 2, dtype=dtype)
        exchange.post([Message(above, sent, 0)], [Message(below, received, 0)]).wait()
        assert (received == below).all()


def outsiders_are_refused(rank: int) -> None:
    group = dist.new_group([1, 2])
    if rank == 0:
        with pytest.raises(InvalidArgument, match="a process group that this process belongs to"):
            Isend().open(group, CPU)


def empty_tensors_do_not_travel(rank: int) -> None:
    exchange = Isend().open(everyone(), CPU)
    above, below = neighbours(exchange)
    nothing = torch.empty(0, 3)
    # Only rank 0 posts: had anything travelled, the others would have to receive it.
    if rank == 0:
        exchange.post([Message(above, nothing, 0)], [Message(below, nothing, 0)]).wait()
    assert (exchange.bytes_sent, exchange.bytes_received) == (0, 0)


def bad_messages_are_refused_by_name(rank: int) -> None:
    exchange = Isend().open(everyone(), CPU)
    above, _ = neighbours(exchange)
    good = Message(above, torch.ones(2), 0)
    for bad, words in (
        (Message(rank, torch.ones(2), 1), r"sends\[1\]\.peer: expected a rank .* other than"),
        (Message(9, torch.ones(2), 1), r"sends\[1\]\.peer: .* got 9"),
        (Message(above, torch.ones(4, 2).T, 1), r"sends\[1\]\.tensor: expected a contiguous"),
        (Message(above, torch.ones(2, device="meta"), 1), r"a tensor on cpu, got one on meta"),
        (Message(above, torch.ones(2), 0), r"sends\[1\]\.tag: expected a tag not in flight"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            exchange.post([good, bad], [])


def a_tag_in_flight_is_not_used_again(rank: int) -> None:
    exchange = Isend().open(everyone(), CPU)
    above, below = neighbours(exchange)
    pending = exchange.post([Message(above, torch.ones(2), 5)], [Message(below, torch.ones(2), 5)])
    with pytest.raises(InvalidArgument, match="a tag not in flight with rank"):
        exchange.post([Message(above, torch.ones(2), 5)], [])
    pending.wait()
    swap_keys_and_values(exchange)


def a_silent_peer_is_named(rank: int) -> None:
    exchange = Isend().open(dist.new_group(timeout=timedelta(seconds=2)), CPU)
    if rank == 0:
        started = time.monotonic()
        pending = exchange.post([], [Message(1, torch.empty(2), tag=3)])
        with pytest.raises(RingError, match="rank 0 of 2: expected receive from rank 1 with tag 3"):
            pending.wait()
        assert time.monotonic() - started < 20


class Wrapped(Exchange):
    """Another exchange that something is wrong with."""

    def __init__(self, inner: Exchange) -> None:
        self.inner = inner
        self.rank, self.world_size = inner.rank, inner.world_size

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        pending = self.inner.post(sends, receives)
        self.bytes_sent, self.bytes_received = self.inner.bytes_sent, self.inner.bytes_received
        return pending


class Uncounted(Wrapped):
    """Counts only what it sends."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        pending = super().post(sends, receives)
        self.bytes_received = 0
        return pending


class Tagless(Wrapped):
    """Matches messages by the order in which they are posted."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        renumbered = (
            [Message(each.peer, each.tensor, number) for number, each in enumerate(messages)]
            for messages in (sends, receives)
        )
        return super().post(*renumbered)


class Impatient(Wrapped):
    """Waits for its messages as soon as they are posted."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        pending = super().post(sends, receives)
        pending.wait()
        return pending


class Faulty(Isend):
    """`isend` with an exchange that something is wrong with."""

    def __init__(self, exchange: type[Wrapped]) -> None:
        self.exchange = exchange

    def open(self, group: dist.ProcessGroup, device: torch.device) -> Any:
        return self.exchange(super().open(group, device))
