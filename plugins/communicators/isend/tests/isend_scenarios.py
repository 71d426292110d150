"""What each rank does in a test of `isend` alone, and communicators that go wrong."""

from __future__ import annotations

import gc
import os
import signal
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
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


def impatient() -> IsendExchange:
    """An exchange whose messages fail after two seconds."""
    return IsendExchange(dist.new_group(timeout=timedelta(seconds=2)), CPU, Route.DIRECT)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def assert_about(error: RingError, kind: type[RingError], **fields: object) -> None:
    assert type(error) is kind
    assert {name: getattr(error, name) for name in fields} == fields


def a_silent_peer_is_named(rank: int) -> None:
    exchange = impatient()
    if rank == 0:
        pending = exchange.post([], [Message(1, torch.empty(2), tag=3, step=5)])
        with pytest.raises(RingTimeout, match="from rank 1, got nothing within the group's") as one:
            pending.wait()
        assert_about(one.value, RingTimeout, rank=0, peer=1, step=5, direction="receive")
        # gloo has closed every connection by now; whoever waits again hears the same.
        with pytest.raises(RingTimeout, match="make a new process group") as again:
            pending.wait()
        assert_about(again.value, RingTimeout, rank=0, peer=1, step=5, direction="receive")


def a_timeout_elsewhere_in_the_group_is_told(rank: int) -> None:
    exchange = impatient()
    if rank == 0:
        with pytest.raises(RuntimeError, match="Timed out"):
            dist.recv(torch.empty(1), 1, group=exchange.group)
        with pytest.raises(RingTimeout, match="connections that a timeout of this rank had closed"):
            exchange.post([Message(1, torch.ones(2), tag=0)], [])


def a_peer_that_died_before_is_lost(rank: int) -> None:
    exchange = impatient()
    swap_keys_and_values(exchange)
    if rank == 2:
        die()
    # More than fits into any buffer on the way, so that sending needs the peer.
    large = Message(2, torch.ones(1 << 22), tag=9, step=4)
    with pytest.raises(PeerLost, match="rank 2, got a closed connection") as found:
        exchange.post([large], []).wait()
    assert_about(found.value, PeerLost, rank=rank, peer=2, step=4, direction="send")


def a_peer_that_dies_while_awaited_is_lost(rank: int) -> None:
    exchange = impatient()
    if rank == 2:
        dist.recv(torch.empty(1), 0)
        die()
    pending = exchange.post([], [Message(2, torch.empty(4), tag=1, step=3)])
    if rank == 0:
        dist.send(torch.ones(1), 2)
    with pytest.raises(PeerLost) as found:
        pending.wait()
    assert_about(found.value, PeerLost, rank=rank, peer=2, step=3, direction="receive")


def the_message_that_failed_is_named(rank: int) -> None:
    """Rank 1 answers, rank 2 dies: of four messages the third is the one that fails."""
    exchange = impatient()
    if rank == 2:
        dist.recv(torch.empty(1), 0)
        die()
    if rank == 1:
        exchange.post(
            [Message(0, torch.ones(4), tag=2, step=1)], [Message(0, torch.empty(4), tag=2, step=1)]
        ).wait()
        dist.send(torch.ones(1), 0)
        return
    pending = exchange.post(
        [Message(1, torch.ones(4), tag=2, step=1)],
        [
            Message(1, torch.empty(4), tag=2, step=1),
            Message(2, torch.empty(4), tag=3, step=6),
            Message(2, torch.empty(4), tag=4, step=7),
        ],
    )
    dist.recv(torch.empty(1), 1)
    dist.send(torch.ones(1), 2)
    with pytest.raises(PeerLost) as found:
        pending.wait()
    assert_about(found.value, PeerLost, rank=0, peer=2, step=6, direction="receive")


def the_dead_are_named_rather_than_the_silent(rank: int) -> None:
    exchange = impatient()
    if rank == 2:
        dist.recv(torch.empty(1), 0)
        die()
    if rank == 0:
        silent = exchange.post([], [Message(1, torch.empty(4), tag=2, step=1)])
        exchange.post([], [Message(2, torch.empty(4), tag=3, step=2)])
        dist.send(torch.ones(1), 2)
        with pytest.raises(PeerLost) as found:
            silent.wait()
        assert_about(found.value, PeerLost, rank=0, peer=2, step=2, direction="receive")


def who_waits_for_a_rank_that_lost_another_hears_of_it(rank: int) -> None:
    """Long before that rank ends, or the group's timeout."""
    group = dist.new_group(timeout=timedelta(seconds=60))
    exchange = IsendExchange(group, CPU, Route.DIRECT)
    swap_keys_and_values(exchange)
    if rank == 2:
        die()
    started, peer = time.monotonic(), (2, 0)[rank]
    with pytest.raises(PeerLost) as found:
        exchange.post([], [Message(peer, torch.empty(4), tag=3)]).wait()
    assert_about(found.value, PeerLost, rank=rank, peer=peer)
    assert time.monotonic() - started < 30
    # Both are alive until both have said so.
    dist.barrier(dist.new_group([0, 1], use_local_synchronization=True))


def what_is_in_flight_at_a_failure_stays_in_memory(rank: int) -> None:
    exchange = impatient()
    if rank == 2:
        die()
    if rank == 1:
        dist.recv(torch.empty(1), 0)
        with pytest.raises(PeerLost):
            exchange.post([Message(0, torch.full((1 << 16,), 7.0), tag=1)], []).wait()
        dist.send(torch.ones(1), 0)
        return
    received = torch.zeros(1 << 16)
    exchange.post([], [Message(1, received, tag=1)])
    with pytest.raises(PeerLost):
        exchange.post([], [Message(2, torch.empty(4), tag=3)]).wait()
    del received
    gc.collect()
    clutter = [torch.full((1 << 16,), 9.0) for _ in range(8)]
    dist.send(torch.ones(1), 1)
    dist.recv(torch.empty(1), 1)
    assert all((each == 9).all() for each in clutter)
    assert exchange.in_flight


def staged_steps_reuse_their_buffers(rank: int) -> None:
    exchange = IsendExchange(everyone(), CPU, Route.STAGED)
    above, below = neighbours(exchange)

    def step(rows: int) -> None:
        received = torch.empty(rows, 2)
        sends = [Message(above, torch.full((rows, 2), float(rank)), tag) for tag in range(2)]
        receives = [Message(below, received, 0), Message(below, torch.empty(rows, 2), 1)]
        exchange.post(sends, receives).wait()
        assert (received == below).all()

    with torch.inference_mode():
        step(100)
    assert exchange.pool.allocations == 4
    for rows in (100, 100, 90, 80, 100):
        step(rows)
    assert exchange.pool.allocations == 4


def staged_buffers_in_flight_are_not_reused(rank: int) -> None:
    exchange = IsendExchange(everyone(), CPU, Route.STAGED)
    above, below = neighbours(exchange)
    flights = []
    for tag in range(3):
        received = torch.empty(5)
        sends = [Message(above, torch.full((5,), 10.0 * rank + tag), tag)]
        pending = exchange.post(sends, [Message(below, received, tag)])
        flights.append((tag, received, pending))
    assert exchange.pool.allocations == 6
    for tag, received, pending in reversed(flights):
        pending.wait()
        assert (received == 10 * below + tag).all()


def staged_failures_keep_their_buffers(rank: int) -> None:
    exchange = IsendExchange(dist.new_group(timeout=timedelta(seconds=2)), CPU, Route.STAGED)
    if rank == 2:
        die()
    received = torch.zeros(4)
    with pytest.raises(PeerLost):
        exchange.post([], [Message(2, received, tag=3)]).wait()
    assert (received == 0).all()
    with pytest.raises(PeerLost, match="make a new process group"):
        exchange.post([Message(1 - rank, torch.ones(4), tag=4)], [])
    assert exchange.pool.allocations == 1


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
