"""What each rank does in a test of `nccl`, over gloo."""

from __future__ import annotations

import gc
import os
import random
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from over_gloo import Broken, GlooCarrier, Mute, OverGloo, Unconnected
from ringspan.contracts import (
    Communicator,
    Exchange,
    InvalidArgument,
    Message,
    PeerLost,
    RingError,
    RingTimeout,
)
from ringspan_nccl import Nccl, NcclSettings
from ringspan_nccl.exchange import NcclExchange
from ringspan_nccl.flights import Flight
from ringspan_nccl.parcels import Parcel, Ticket

CPU = torch.device("cpu")
PATIENCE = timedelta(seconds=2)


def everyone() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


def impatient(communicator: Communicator | None = None) -> Exchange:
    """An exchange whose messages are given up after two seconds."""
    return (communicator or OverGloo()).open(dist.new_group(timeout=PATIENCE), CPU)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def value(sender: int, receiver: int, tag: int) -> int:
    return 10_000 * sender + 1_000 * receiver + tag


def length(sender: int, receiver: int, tag: int) -> int:
    """Uneven, and now and then nothing at all."""
    return (7 * sender + 3 * receiver + tag) % 5


def filled(size: int, content: int, device: torch.device) -> torch.Tensor:
    return torch.full((size,), content, dtype=torch.int32, device=device)


def crossing(exchange: Exchange, tags: int, *, seed: int) -> None:
    """Everybody sends everybody else `tags` messages, posted in an order of its own."""
    assert isinstance(exchange, NcclExchange)
    rank = exchange.rank
    shuffled = random.Random(1000 * seed + rank).shuffle
    pairs = [
        (peer, tag) for peer in range(exchange.world_size) if peer != rank for tag in range(tags)
    ]
    sends = [
        Message(
            peer,
            filled(length(rank, peer, tag), value(rank, peer, tag), exchange.device),
            tag,
        )
        for peer, tag in pairs
    ]
    received = {
        (peer, tag): filled(length(peer, rank, tag), 0, exchange.device) for peer, tag in pairs
    }
    receives = [Message(peer, buffer, tag) for (peer, tag), buffer in received.items()]
    shuffled(sends)
    shuffled(receives)
    before = exchange.bytes_sent, exchange.bytes_received
    exchange.post(sends, receives).wait()
    for (peer, tag), buffer in received.items():
        assert (buffer == value(peer, rank, tag)).all()
    assert exchange.bytes_sent - before[0] == sum(
        4 * length(rank, peer, tag) for peer, tag in pairs
    )
    assert exchange.bytes_received - before[1] == sum(buffer.nbytes for buffer in received.values())


def many_messages_cross_in_any_order(rank: int) -> None:
    exchange = OverGloo().open(everyone(), CPU)
    for seed, tags in enumerate((1, 40, 300, 3)):
        crossing(exchange, tags, seed=seed)


def uneven_messages_in_one_direction_arrive(rank: int) -> None:
    """Rank 0 sends 600 messages to rank 1 while ranks 2 .. pass one on around the ring."""
    exchange = OverGloo().open(everyone(), CPU)
    above, below = (rank + 1) % exchange.world_size, (rank - 1) % exchange.world_size
    tags = {0: 600}
    sends = [Message(above, torch.full((2,), float(tag)), tag) for tag in range(tags.get(rank, 1))]
    received = [torch.zeros(2) for _ in range(tags.get(below, 1))]
    exchange.post(sends, [Message(below, each, tag) for tag, each in enumerate(received)]).wait()
    assert all((each == tag).all() for tag, each in enumerate(received))


def the_users_messages_do_not_mix_with_ours(rank: int) -> None:
    """Of equal tag, between the same two, on the group that the exchange was opened on."""
    exchange = OverGloo().open(everyone(), CPU)
    peer = 1 - rank
    theirs, ours = torch.zeros(3), torch.zeros(3)
    early = dist.irecv(theirs, peer, tag=0)
    pending = exchange.post([Message(peer, torch.full((3,), 1.0), 0)], [Message(peer, ours, 0)])
    pending.wait()
    assert (ours == 1).all()
    assert (theirs == 0).all()
    dist.barrier()
    dist.isend(torch.full((3,), 2.0), peer, tag=0).wait()  # type: ignore[union-attr]
    early.wait()  # type: ignore[union-attr]
    assert (theirs == 2).all()


def two_exchanges_of_one_group_do_not_mix(rank: int) -> None:
    """Of equal tag, between the same two: each arrives where it was posted."""
    first, second = (OverGloo().open(everyone(), CPU) for _ in range(2))
    peer = 1 - rank
    got_first, got_second = torch.zeros(3), torch.zeros(3)
    if rank == 0:
        early = first.post([], [Message(peer, got_first, 0)])
    second.post([Message(peer, torch.full((3,), 2.0), 0)], [Message(peer, got_second, 0)]).wait()
    assert (got_second == 2).all()
    assert (got_first == 0).all()
    dist.barrier()
    if rank == 1:
        early = first.post([Message(peer, torch.full((3,), 1.0), 0)], [])
    early.wait()
    assert (got_first == 1 - rank).all()


def subgroups_meet_whatever_else_their_members_know(rank: int) -> None:
    """Rank 2 is in a group more than rank 1 is, and rank 0 is in neither of theirs."""
    dist.new_group([0, 2])
    inner = dist.new_group([1, 2])
    if rank in (1, 2):
        exchange = OverGloo().open(inner, CPU)
        assert (exchange.rank, exchange.world_size) == (rank - 1, 2)
        assert exchange._flights._carrier.membership.members == (1, 2)  # type: ignore[attr-defined]
        crossing(exchange, 5, seed=1)
    again = dist.new_group([2, 0])
    if rank in (0, 2):
        exchange = OverGloo().open(again, CPU)
        crossing(exchange, 5, seed=2)


def bad_messages_are_refused_by_name(rank: int) -> None:
    exchange = OverGloo().open(everyone(), CPU)
    above, below = (rank + 1) % 3, (rank - 1) % 3
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
    assert (exchange.bytes_sent, exchange.bytes_received) == (0, 0)
    pending = exchange.post([good], [Message(below, torch.ones(2), 0)])
    with pytest.raises(InvalidArgument, match="a tag not in flight with rank"):
        exchange.post([good], [])
    pending.wait()
    crossing(exchange, 3, seed=3)


def outsiders_and_other_groups_are_refused(rank: int) -> None:
    group = dist.new_group([1, 2])
    if rank == 0:
        with pytest.raises(InvalidArgument, match="a process group that this process belongs to"):
            OverGloo().open(group, CPU)
    with pytest.raises(InvalidArgument, match=r"meta tensors \(supported: cpu\)"):
        OverGloo().open(everyone(), torch.device("meta"))


def tensors_live_until_they_are_waited_for(rank: int) -> None:
    exchange = OverGloo().open(everyone(), CPU)
    above, below = (rank + 1) % 3, (rank - 1) % 3
    received = torch.zeros(1 << 16)
    pending = exchange.post(
        [Message(above, torch.full((1 << 16,), float(rank)), 0)], [Message(below, received, 0)]
    )
    gc.collect()
    clutter = [torch.full((1 << 16,), 9.0) for _ in range(8)]
    pending.wait()
    assert len(clutter) == 8
    assert (received == below).all()


def assert_about(error: RingError, kind: type[RingError], **fields: object) -> None:
    assert type(error) is kind, error
    assert {name: getattr(error, name) for name in fields} == fields


def a_silent_peer_is_named(rank: int) -> None:
    exchange = impatient()
    if rank == 0:
        pending = exchange.post([], [Message(1, torch.empty(2), 3, step=5)])
        started = time.monotonic()
        with pytest.raises(RingTimeout, match="receive from rank 1, got nothing for 2 s") as found:
            pending.wait()
        assert 1.9 < time.monotonic() - started < 15
        assert_about(found.value, RingTimeout, rank=0, peer=1, step=5, direction="receive")
        with pytest.raises(RingTimeout, match="Nothing travels since that failure"):
            pending.wait()
        with pytest.raises(RingTimeout, match="Nothing travels since that failure"):
            exchange.post([Message(1, torch.ones(2), 4)], [])
        carrier = exchange._flights._carrier  # type: ignore[attr-defined]
        assert isinstance(carrier, GlooCarrier)
        assert carrier.aborted
        assert carrier.membership.timeout == PATIENCE + timedelta(minutes=1)


def which_of_two_peers_is_silent_is_not_pretended_to_be_known(rank: int) -> None:
    exchange = impatient()
    if rank == 0:
        messages = [Message(1, torch.ones(2), 0)], [Message(2, torch.empty(2), 0)]
        with pytest.raises(RingTimeout, match=r"from rank 2, .* \(it may be rank 1: NCCL") as found:
            exchange.post(*messages).wait()
        assert_about(found.value, RingTimeout, rank=0, peer=2, direction="receive")


def the_host_does_not_run_ahead_of_a_silent_peer(rank: int) -> None:
    """Nobody waits for messages; posting alone finds out."""
    exchange = impatient(OverGloo(run_ahead=4, blocking=False))
    if rank == 0:
        for step in range(4):
            exchange.post([], [Message(1, torch.empty(2), step, step=step)])
        with pytest.raises(RingTimeout) as found:
            exchange.post([], [Message(1, torch.empty(2), 4, step=4)])
        assert_about(found.value, RingTimeout, rank=0, peer=1, step=0, direction="receive")
        assert exchange.bytes_received == 4 * 8


def the_host_runs_ahead_of_a_peer_that_comes(rank: int) -> None:
    """Many more calls than may be in flight, none of them waited for before the last."""
    exchange = OverGloo(run_ahead=3, blocking=False).open(everyone(), CPU)
    peer = 1 - rank
    received = [torch.zeros(4) for _ in range(20)]
    flights = []
    for step, buffer in enumerate(received):
        sent = torch.full((4,), float(step))
        flights.append(exchange.post([Message(peer, sent, step)], [Message(peer, buffer, step)]))
        assert len(exchange._flights._queue) <= 3  # type: ignore[attr-defined]
    for pending in reversed(flights):
        pending.wait()
    assert all((each == step).all() for step, each in enumerate(received))


def a_dead_peer_is_lost(rank: int, communicator: Communicator) -> None:
    """Rank 2 of 3 dies between steps; the others name it, not the neighbour that lives."""
    exchange = impatient(communicator)
    crossing(exchange, 2, seed=5)
    if rank == 2:
        die()
    above, below = (rank + 1) % 3, (rank - 1) % 3
    received = torch.empty(4)
    pending = exchange.post(
        [Message(above, torch.ones(4), 7, step=1)], [Message(below, received, 7, step=1)]
    )
    with pytest.raises(PeerLost) as found:
        pending.wait()
    direction = "send" if above == 2 else "receive"
    assert_about(found.value, PeerLost, rank=rank, peer=2, step=1, direction=direction)
    with pytest.raises(PeerLost):
        exchange.post([Message(1 - rank, torch.ones(4), 8)], [])


def a_batch_that_does_not_start_is_named(rank: int) -> None:
    """And what cannot be ended is said in a note."""
    exchange = impatient(Broken())
    if rank == 0:
        messages = [Message(1, torch.ones(2), 3, step=4)]
        with pytest.raises(RingError, match="ncclInvalidUsage") as found:
            exchange.post(messages, [])
        assert_about(found.value, RingError, rank=0, peer=1, step=4, direction="send")
        assert found.value.__notes__ == ["What was on its way could not be ended: stuck"]
        assert exchange.bytes_sent == 0
        with pytest.raises(RingError, match="Nothing travels since that failure"):
            exchange.post(messages, [])


def ranks_that_cannot_be_connected_are_an_error(rank: int) -> None:
    group = dist.new_group(timeout=PATIENCE)
    with pytest.raises(RingTimeout, match=f"rank {rank}: expected every rank to open the ring"):
        Mute().open(group, CPU)
    with pytest.raises(RingError, match=r"expected a connection to every rank .* got no route"):
        Unconnected().open(group, CPU)


def a_rank_that_does_not_open_is_named(rank: int) -> None:
    group = dist.new_group(timeout=PATIENCE)
    if rank == 0:
        with pytest.raises(RingTimeout, match="rank 1 to open the ring over NCCL too") as found:
            OverGloo().open(group, CPU)
        assert_about(found.value, RingTimeout, rank=0, peer=1)


def messages_to_itself_travel_over_nccl(rank: int) -> None:
    """One GPU is enough for this: the exchange refuses it, its carrier does not."""
    exchange = Nccl().open(everyone(), torch.device("cuda", 0))
    assert isinstance(exchange, NcclExchange)
    for step in range(20):
        sent, received = filled(1000, step, exchange.device), filled(1000, -1, exchange.device)
        parcels = [
            Parcel(Ticket("send", 0, step), sent.view(torch.uint8)),
            Parcel(Ticket("receive", 0, step), received.view(torch.uint8)),
        ]
        flight = Flight(parcels=parcels)
        exchange._flights.make_room(3)
        exchange._flights.start(flight, [parcels])
        exchange._flights.follow(flight)
        assert (received == step).all()
    exchange._flights.land(flight)
    assert flight.has_landed()


def messages_cross_over_nccl(rank: int) -> None:
    exchange = Nccl().open(everyone(), torch.device("cuda", rank))
    for seed, tags in enumerate((1, 300, 3)):
        crossing(exchange, tags, seed=seed)


def a_silent_peer_over_nccl_is_named(rank: int) -> None:
    """And what waited for it on the device does not wait any more."""
    nccl = Nccl()
    nccl.section = NcclSettings(blocking=True)
    device = torch.device("cuda", rank)
    exchange = nccl.open(dist.new_group(timeout=timedelta(seconds=20)), device)
    if rank == 0:
        pending = exchange.post([], [Message(1, filled(4, 0, device), 3, step=5)])
        with pytest.raises(RingTimeout) as found:
            pending.wait()
        assert_about(found.value, RingTimeout, rank=0, peer=1, step=5, direction="receive")
        torch.cuda.synchronize(device)


def a_dead_peer_over_nccl_is_lost(rank: int) -> None:
    nccl = Nccl()
    nccl.section = NcclSettings(blocking=True)
    exchange = nccl.open(everyone(), torch.device("cuda", rank))
    crossing(exchange, 2, seed=5)
    if rank == 1:
        die()
    pending = exchange.post([], [Message(1, filled(4, 0, torch.device("cuda", 0)), 3, step=5)])
    with pytest.raises(PeerLost) as found:
        pending.wait()
    assert_about(found.value, PeerLost, rank=0, peer=1, step=5, direction="receive")
