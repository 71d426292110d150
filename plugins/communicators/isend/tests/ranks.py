"""What each rank does in a test; run by `test_isend.py` in processes of its own."""

import os
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection

import pytest
import torch
import torch.distributed as dist
from ringspan.contracts import Exchange, InvalidArgument, Message, RingError
from ringspan_isend import Isend
from ringspan_isend.exchange import IsendExchange
from ringspan_isend.route import Route

CPU = torch.device("cpu")


def serve(pipe: Connection, rank: int, world_size: int, store: str) -> None:
    """Runs the scenarios named through `pipe` and answers each with its traceback, or nothing."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=timedelta(seconds=30),
    )
    while scenario := pipe.recv():
        try:
            globals()[scenario]()
        except Exception:  # noqa: BLE001 - the parent fails the test with it
            pipe.send(traceback.format_exc())
        else:
            pipe.send(None)


def everyone() -> dist.ProcessGroup:
    group = dist.group.WORLD
    assert group is not None
    return group


def world() -> Exchange:
    return Isend().open(everyone(), CPU)


def rows(
    sender: int, receiver: int, *shape: int, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What `sender` sends to `receiver`: both can compute it."""
    generator = torch.Generator().manual_seed(100 * sender + receiver)
    return torch.randn(shape, generator=generator).to(dtype)


def ring_step(exchange: Exchange, *shape: int, dtype: torch.dtype = torch.float32) -> None:
    """Sends one step up the ring and checks what comes from below."""
    rank, size = exchange.rank, exchange.world_size
    above, below = (rank + 1) % size, (rank - 1) % size
    received = torch.zeros(shape, dtype=dtype)
    exchange.post(
        [Message(above, rows(rank, above, *shape, dtype=dtype), tag=0)],
        [Message(below, received, tag=0)],
    ).wait()
    expected = rows(below, rank, *shape, dtype=dtype)
    assert torch.equal(received.view(torch.uint8), expected.view(torch.uint8))


def values_travel_around_the_ring() -> None:
    ring_step(world(), 5, 3)


def a_megabyte_each_way_does_not_deadlock() -> None:
    ring_step(world(), 1 << 18)


def every_dtype_travels() -> None:
    exchange = world()
    for dtype in (
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.float8_e4m3fn,
        torch.bool,
        torch.int64,
    ):
        ring_step(exchange, 4, 3, dtype=dtype)


def bytes_are_counted_as_sent_and_received() -> None:
    exchange = world()
    peer = (exchange.rank + 1) % exchange.world_size
    below = (exchange.rank - 1) % exchange.world_size
    # Rank r sends r + 1 rows of 6 bytes.
    sent = torch.zeros(exchange.rank + 1, 3, dtype=torch.bfloat16)
    received = torch.empty(below + 1, 3, dtype=torch.bfloat16)
    exchange.post([Message(peer, sent, 0)], [Message(below, received, 0)]).wait()
    assert exchange.bytes_sent == 6 * (exchange.rank + 1)
    assert exchange.bytes_received == 6 * (below + 1)


def tags_match_whatever_the_posting_order() -> None:
    exchange = world()
    swap_posting_order(exchange)


def grouped_messages_match_by_tag_too() -> None:
    # gloo stands in for NCCL: with one tag for all, it matches messages in posting order.
    swap_posting_order(IsendExchange(everyone(), CPU, Route.GROUPED))


def swap_posting_order(exchange: Exchange) -> None:
    """Rank 0 posts key then value; the others expect value then key."""
    above, below = (exchange.rank + 1) % exchange.world_size, exchange.rank - 1
    key, value = torch.full((4,), 1.0), torch.full((4,), 2.0)
    got_key, got_value = torch.empty(4), torch.empty(4)
    sends = [Message(above, key, tag=1), Message(above, value, tag=2)]
    receives = [
        Message(below % exchange.world_size, got_value, tag=2),
        Message(below % exchange.world_size, got_key, tag=1),
    ]
    exchange.post(sends, receives).wait()
    assert torch.equal(got_key, key)
    assert torch.equal(got_value, value)


def staged_messages_arrive_where_they_were_wanted() -> None:
    # Host tensors stand in for a device's: the way through host memory is the same.
    exchange = IsendExchange(everyone(), CPU, Route.STAGED)
    ring_step(exchange, 7, 2)
    ring_step(exchange, 7, 2, dtype=torch.bfloat16)


def peers_are_ranks_of_the_group() -> None:
    group = dist.new_group([1, 2])
    if dist.get_rank() == 0:
        with pytest.raises(InvalidArgument, match="a process group that this process belongs to"):
            Isend().open(group, CPU)
        return
    exchange = Isend().open(group, CPU)
    assert (exchange.rank, exchange.world_size) == (dist.get_rank() - 1, 2)
    ring_step(exchange, 3)


def empty_tensors_do_not_travel() -> None:
    exchange = world()
    above = (exchange.rank + 1) % exchange.world_size
    below = (exchange.rank - 1) % exchange.world_size
    nothing = torch.empty(0, 3)
    # Only rank 0 posts: had anything travelled, the others would have to receive it.
    if exchange.rank == 0:
        exchange.post([Message(above, nothing, 0)], [Message(below, nothing, 0)]).wait()
    assert (exchange.bytes_sent, exchange.bytes_received) == (0, 0)
    exchange.post([], []).wait()


def waiting_twice_is_waiting_once() -> None:
    exchange = world()
    above = (exchange.rank + 1) % exchange.world_size
    below = (exchange.rank - 1) % exchange.world_size
    received = torch.empty(2)
    pending = exchange.post([Message(above, torch.ones(2), 0)], [Message(below, received, 0)])
    pending.wait()
    pending.wait()
    assert torch.equal(received, torch.ones(2))


def tensors_stay_alive_until_waited_for() -> None:
    exchange = world()
    above = (exchange.rank + 1) % exchange.world_size
    below = (exchange.rank - 1) % exchange.world_size
    received = torch.empty(1 << 16)
    pending = exchange.post(
        [Message(above, torch.full((1 << 16,), 7.0), 0)], [Message(below, received, 0)]
    )
    clutter = [torch.full((1 << 16,), 9.0) for _ in range(8)]
    pending.wait()
    assert len(clutter) == 8
    assert torch.equal(received, torch.full((1 << 16,), 7.0))


def bad_messages_are_refused_before_anything_is_posted() -> None:
    exchange = world()
    rank, above = exchange.rank, (exchange.rank + 1) % exchange.world_size
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
    assert exchange.bytes_sent == 0
    ring_step(exchange, 2)


def a_tag_in_flight_is_not_used_again() -> None:
    exchange = world()
    above = (exchange.rank + 1) % exchange.world_size
    below = (exchange.rank - 1) % exchange.world_size
    pending = exchange.post([Message(above, torch.ones(2), 5)], [Message(below, torch.ones(2), 5)])
    with pytest.raises(InvalidArgument, match="a tag not in flight with rank"):
        exchange.post([Message(above, torch.ones(2), 5)], [])
    pending.wait()
    ring_step(exchange, 2)


def too_many_grouped_messages_are_refused() -> None:
    exchange = IsendExchange(everyone(), CPU, Route.GROUPED)
    above = (exchange.rank + 1) % exchange.world_size
    with pytest.raises(InvalidArgument, match="at most 256 messages"):
        exchange.post([Message(above, torch.ones(1), tag) for tag in range(257)], [])


def a_silent_peer_is_an_error_after_the_timeout() -> None:
    group = dist.new_group(timeout=timedelta(seconds=2))
    exchange = Isend().open(group, CPU)
    if exchange.rank == 0:
        started = time.monotonic()
        pending = exchange.post([], [Message(1, torch.empty(2), tag=3)])
        with pytest.raises(RingError, match="rank 0 of 2: expected receive from rank 1 with tag 3"):
            pending.wait()
        assert time.monotonic() - started < 20


def a_dead_peer_is_an_error() -> None:
    exchange = world()
    ring_step(exchange, 2)
    if exchange.rank == 1:
        os._exit(0)
    with pytest.raises(RingError, match="receive from rank 1 with tag 4") as caught:
        exchange.post([], [Message(1, torch.empty(2), tag=4)]).wait()
    assert isinstance(caught.value.__cause__, RuntimeError)
    with pytest.raises(RingError, match="send to rank 1 with tag 5"):
        exchange.post([Message(1, torch.ones(1 << 20), tag=5)], []).wait()


if __name__ == "rank":
    # The parent starts this file by its path and gives it `job`.
    serve(*globals()["job"])
