"""What each rank does in the tests of a communicator; every function runs on all ranks at once."""

from __future__ import annotations

import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing.reductions import StorageWeakRef

from ringspan.contracts import (
    Communicator,
    Exchange,
    InvalidArgument,
    Message,
    PeerLost,
    Pending,
    RingError,
    RingTimeout,
)

__all__ = [
    "a_dead_peer_is_an_error",
    "a_silent_peer_is_an_error",
    "a_tag_that_nobody_sends_is_an_error",
    "another_thread_posts_and_waits",
    "bad_messages_are_refused",
    "buffers_are_used_again",
    "bytes_are_counted",
    "empty_messages_arrive",
    "every_dtype_travels",
    "everybody_writes_to_everybody",
    "inference_mode_changes_nothing",
    "large_messages_cross",
    "messages_are_parts_of_larger_memory",
    "nothing_is_kept",
    "one_exchange_serves_many_calls",
    "peers_are_ranks_of_the_group",
    "posting_does_not_wait",
    "tags_match_in_any_order",
    "tensors_stay_alive",
    "the_exchange_knows_its_group",
    "values_travel_around_the_ring",
    "waiting_happens_in_any_order",
]

DTYPES = (
    torch.float32,
    torch.float64,
    torch.bfloat16,
    torch.float16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.bool,
)
PATIENCE = timedelta(seconds=2)
"""How long a group of a test waits for what never comes."""


def _opened(communicator: Communicator, device: str) -> Exchange:
    group = dist.group.WORLD
    assert group is not None
    return communicator.open(group, torch.device(device))


def _rows(
    sender: int, receiver: int, *shape: int, device: str, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What `sender` sends to `receiver`: any bits at all, which both can compute."""
    draw = torch.Generator().manual_seed(100 * sender + receiver)
    if dtype == torch.bool:
        return (torch.rand(shape, generator=draw) < 0.5).to(device)
    wide = (*shape[:-1], shape[-1] * dtype.itemsize)
    bits = torch.randint(256, wide, dtype=torch.uint8, generator=draw)
    return bits.view(dtype).to(device)


def _assert_same_bits(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def _step(
    exchange: Exchange, device: str, *shape: int, dtype: torch.dtype = torch.float32, tag: int = 0
) -> tuple[Pending, torch.Tensor, torch.Tensor]:
    """One step up the ring: what was started, what arrives, and what should; alone, nothing."""
    rank, size = exchange.rank, exchange.world_size
    above, below = (rank + 1) % size, (rank - 1) % size
    if size == 1:
        nothing = torch.empty(0, device=device)
        return exchange.post([], []), nothing, nothing
    received = torch.zeros(shape, dtype=dtype, device=device)
    pending = exchange.post(
        [Message(above, _rows(rank, above, *shape, dtype=dtype, device=device), tag)],
        [Message(below, received, tag)],
    )
    return pending, received, _rows(below, rank, *shape, dtype=dtype, device=device)


def _complete_step(
    exchange: Exchange, device: str, *shape: int, dtype: torch.dtype = torch.float32
) -> None:
    pending, received, expected = _step(exchange, device, *shape, dtype=dtype)
    pending.wait()
    _assert_same_bits(received, expected)


def the_exchange_knows_its_group(rank: int, communicator: Communicator, device: str) -> None:
    """Its rank, its world size, and that nothing has travelled."""
    exchange = _opened(communicator, device)
    assert (exchange.rank, exchange.world_size) == (rank, dist.get_world_size())
    assert (exchange.bytes_sent, exchange.bytes_received) == (0, 0)
    exchange.post([], []).wait()
    assert (exchange.bytes_sent, exchange.bytes_received) == (0, 0)


def values_travel_around_the_ring(rank: int, communicator: Communicator, device: str) -> None:
    """Several steps on one exchange."""
    exchange = _opened(communicator, device)
    for rows in (5, 1, 64):
        _complete_step(exchange, device, rows, 3)


def every_dtype_travels(rank: int, communicator: Communicator, device: str) -> None:
    """Bit for bit."""
    exchange = _opened(communicator, device)
    for dtype in DTYPES:
        _complete_step(exchange, device, 4, 3, dtype=dtype)


def large_messages_cross(rank: int, communicator: Communicator, device: str) -> None:
    """Four megabytes each way at once: more than any buffer on the way holds."""
    _complete_step(_opened(communicator, device), device, 1 << 20)


def bytes_are_counted(rank: int, communicator: Communicator, device: str) -> None:
    """Rank `r` sends `r + 1` rows of six bytes, twice; both directions are summed up."""
    exchange = _opened(communicator, device)
    size = exchange.world_size
    if size == 1:
        return
    above, below = (rank + 1) % size, (rank - 1) % size
    for times in (1, 2):
        sent = torch.zeros(rank + 1, 3, dtype=torch.bfloat16, device=device)
        received = torch.empty(below + 1, 3, dtype=torch.bfloat16, device=device)
        exchange.post([Message(above, sent, times)], [Message(below, received, times)]).wait()
        assert exchange.bytes_sent == times * 6 * (rank + 1)
        assert exchange.bytes_received == times * 6 * (below + 1)


def one_exchange_serves_many_calls(rank: int, communicator: Communicator, device: str) -> None:
    """Of all sizes, one after another, with the same tag; bytes are counted over all of them."""
    exchange = _opened(communicator, device)
    moved = 0
    for call in range(50):
        rows = 1 + 37 * call % 11
        _complete_step(exchange, device, rows, 2)
        moved += 8 * rows * (exchange.world_size > 1)
        assert (exchange.bytes_sent, exchange.bytes_received) == (moved, moved)


def buffers_are_used_again(rank: int, communicator: Communicator, device: str) -> None:
    """What was waited for is overwritten at once, and sent and filled again."""
    exchange = _opened(communicator, device)
    size = exchange.world_size
    if size == 1:
        return
    above, below = (rank + 1) % size, (rank - 1) % size
    sent, received = (torch.empty(1 << 14, device=device) for _ in range(2))
    for call in range(20):
        sent.fill_(100 * rank + call)
        exchange.post([Message(above, sent, 0)], [Message(below, received, 0)]).wait()
        sent.fill_(-1)
        assert (received == 100 * below + call).all()


def messages_are_parts_of_larger_memory(rank: int, communicator: Communicator, device: str) -> None:
    """Slices of two buffers of bytes, at odd places; what lies beside them stays as it was."""
    exchange = _opened(communicator, device)
    size = exchange.world_size
    if size == 1:
        return
    above, below = (rank + 1) % size, (rank - 1) % size
    sent = torch.arange(60, device=device).to(torch.uint8) + 60 * rank
    received = torch.full((60,), 255, dtype=torch.uint8, device=device)
    parts = {1: slice(3, 10), 2: slice(10, 41)}
    exchange.post(
        [Message(above, sent[part], tag) for tag, part in parts.items()],
        [Message(below, received[part], tag) for tag, part in parts.items()],
    ).wait()
    expected = torch.arange(60, device=device).to(torch.uint8) + 60 * below
    assert torch.equal(received[3:41], expected[3:41])
    assert (received[:3] == 255).all()
    assert (received[41:] == 255).all()


def nothing_is_kept(rank: int, communicator: Communicator, device: str) -> None:
    """The exchange lives as long as its group: it lets go of what was waited for."""
    exchange = _opened(communicator, device)
    size = exchange.world_size
    if size == 1:
        return
    above, below = (rank + 1) % size, (rank - 1) % size
    sent, received = (torch.ones(1000, device=device) for _ in range(2))
    memory: list[Any] = [
        StorageWeakRef(x.untyped_storage())  # type: ignore[no-untyped-call]
        for x in (sent, received)
    ]
    exchange.post([Message(above, sent, 0)], [Message(below, received, 0)]).wait()
    _complete_step(exchange, device, 2)
    del sent, received
    # A transport may let go of it a moment later, in a thread of its own.
    end = time.monotonic() + PATIENCE.total_seconds()
    while not all(each.expired() for each in memory) and time.monotonic() < end:
        gc.collect()
        time.sleep(0.01)
    assert all(each.expired() for each in memory)


def inference_mode_changes_nothing(rank: int, communicator: Communicator, device: str) -> None:
    """Neither for tensors made inside of it, nor for those made outside, nor afterwards."""
    exchange = _opened(communicator, device)
    size = exchange.world_size
    if size == 1:
        return
    above, below = (rank + 1) % size, (rank - 1) % size
    outside = torch.full((3,), float(rank), device=device), torch.empty(3, device=device)
    with torch.inference_mode():
        inside = torch.full((3,), float(rank), device=device), torch.empty(3, device=device)
        for sent, received in (outside, inside):
            exchange.post([Message(above, sent, 0)], [Message(below, received, 0)]).wait()
            assert (received == below).all()
    _complete_step(exchange, device, 3)


def another_thread_posts_and_waits(rank: int, communicator: Communicator, device: str) -> None:
    """On GPUs torch runs backward passes in a thread of its own."""
    exchange = _opened(communicator, device)
    _complete_step(exchange, device, 5)
    with ThreadPoolExecutor(1) as thread:
        thread.submit(_complete_step, exchange, device, 7).result()
        pending, received, expected = _step(exchange, device, 3)
        thread.submit(pending.wait).result()
    _assert_same_bits(received, expected)


def tags_match_in_any_order(rank: int, communicator: Communicator, device: str) -> None:
    """Each side posts its messages in an order of its own; tags are large, too."""
    exchange = _opened(communicator, device)
    size = exchange.world_size
    if size == 1:
        return
    above, below = (rank + 1) % size, (rank - 1) % size
    values = {3: 1.0, 2**30 - 1: 2.0, 0: 3.0}
    sends = [Message(above, torch.full((4,), x, device=device), tag) for tag, x in values.items()]
    received = {tag: torch.zeros(4, device=device) for tag in sorted(values)}
    receives = [Message(below, buffer, tag) for tag, buffer in received.items()]
    exchange.post(sends, receives).wait()
    assert all((buffer == values[tag]).all() for tag, buffer in received.items())


def empty_messages_arrive(rank: int, communicator: Communicator, device: str) -> None:
    """Alone and beside one that is not empty; they count no bytes."""
    exchange = _opened(communicator, device)
    size = exchange.world_size
    if size == 1:
        return
    above, below = (rank + 1) % size, (rank - 1) % size
    nothing = torch.empty(0, 3, device=device)
    exchange.post([Message(above, nothing, 0)], [Message(below, nothing, 0)]).wait()
    assert (exchange.bytes_sent, exchange.bytes_received) == (0, 0)
    something, received = torch.ones(2, device=device), torch.zeros(2, device=device)
    exchange.post(
        [Message(above, nothing, 1), Message(above, something, 2)],
        [Message(below, nothing, 1), Message(below, received, 2)],
    ).wait()
    assert torch.equal(received, something)
    assert (exchange.bytes_sent, exchange.bytes_received) == (8, 8)


def everybody_writes_to_everybody(rank: int, communicator: Communicator, device: str) -> None:
    """In one call, each message of another length."""
    exchange = _opened(communicator, device)
    others = [peer for peer in range(exchange.world_size) if peer != rank]
    sends = [
        Message(peer, _rows(rank, peer, 1 + 2 * rank + peer, device=device), tag=0)
        for peer in others
    ]
    received = {peer: torch.zeros(1 + 2 * peer + rank, device=device) for peer in others}
    receives = [Message(peer, buffer, tag=0) for peer, buffer in received.items()]
    exchange.post(sends, receives).wait()
    for peer, buffer in received.items():
        _assert_same_bits(buffer, _rows(peer, rank, *buffer.shape, device=device))


def waiting_happens_in_any_order(rank: int, communicator: Communicator, device: str) -> None:
    """Three calls in flight, the last waited for first; waiting twice is waiting once."""
    exchange = _opened(communicator, device)
    steps = [_step(exchange, device, 3 + tag, tag=tag) for tag in range(3)]
    for pending, received, expected in reversed(steps):
        pending.wait()
        _assert_same_bits(received, expected)
        pending.wait()
        _assert_same_bits(received, expected)


def posting_does_not_wait(rank: int, communicator: Communicator, device: str) -> None:
    """Rank 0 posts a receive whose sender waits, by another way, until it has been posted."""
    group = dist.new_group(timeout=5 * PATIENCE)
    exchange = communicator.open(group, torch.device(device))
    if exchange.world_size == 1:
        return
    if rank == 0:
        received = torch.zeros(3, device=device)
        pending = exchange.post([], [Message(1, received, 0)])
        dist.send(torch.ones(1), 1)
        pending.wait()
        assert torch.equal(received.cpu(), torch.full((3,), 7.0))
    elif rank == 1:
        dist.recv(torch.empty(1), 0)
        exchange.post([Message(0, torch.full((3,), 7.0, device=device), 0)], []).wait()


def tensors_stay_alive(rank: int, communicator: Communicator, device: str) -> None:
    """Nobody else holds what is sent, and its memory would be written again."""
    exchange = _opened(communicator, device)
    pending, received, expected = _step(exchange, device, 1 << 16)
    gc.collect()
    clutter = [torch.full((1 << 16,), 9.0, device=device) for _ in range(8)]
    pending.wait()
    assert len(clutter) == 8
    _assert_same_bits(received, expected)


def peers_are_ranks_of_the_group(rank: int, communicator: Communicator, device: str) -> None:
    """In a group without the first rank, everyone's number is one less."""
    members = list(range(1, dist.get_world_size()))
    group = dist.new_group(members)
    if rank == 0:
        return
    exchange = communicator.open(group, torch.device(device))
    assert (exchange.rank, exchange.world_size) == (rank - 1, len(members))
    _complete_step(exchange, device, 3)


def bad_messages_are_refused(rank: int, communicator: Communicator, device: str) -> None:
    """Before anything is posted: what is right beside them does not travel."""
    exchange = _opened(communicator, device)
    size = exchange.world_size
    good = [Message((rank + 1) % size, torch.ones(2, device=device), 0)] if size > 1 else []
    peer = (rank + 1) % size
    for bad in (
        Message(rank, torch.ones(2, device=device), 1),
        Message(size, torch.ones(2, device=device), 1),
        Message(-1, torch.ones(2, device=device), 1),
        Message(peer, torch.ones(4, 2, device=device).T, 1),
        Message(peer, torch.ones(2, device="meta"), 1),
    ):
        with pytest.raises(InvalidArgument):
            exchange.post([*good, bad], [])
        with pytest.raises(InvalidArgument):
            exchange.post(good, [bad])
    assert (exchange.bytes_sent, exchange.bytes_received) == (0, 0)
    _complete_step(exchange, device, 2)


def a_silent_peer_is_an_error(rank: int, communicator: Communicator, device: str) -> None:
    """Within the group's timeout, and not a hang."""
    exchange = communicator.open(dist.new_group(timeout=PATIENCE), torch.device(device))
    if rank == 0:
        with pytest.raises(RingTimeout) as found:
            exchange.post([], [Message(1, torch.empty(2, device=device), 3, step=7)]).wait()
        _assert_about(found.value, peer=1, step=7, direction="receive")


def a_tag_that_nobody_sends_is_an_error(rank: int, communicator: Communicator, device: str) -> None:
    """A message of another tag does not take its place."""
    exchange = communicator.open(dist.new_group(timeout=PATIENCE), torch.device(device))
    if rank == 0:
        received = torch.zeros(2, device=device)
        with pytest.raises(RingTimeout) as found:
            exchange.post([], [Message(1, received, 3, step=2)]).wait()
        _assert_about(found.value, peer=1, step=2, direction="receive")
        assert (received == 0).all()
        dist.barrier()
    else:
        # Not waited for: whether a message that nobody wants counts as sent is the transport's.
        pending = exchange.post([Message(0, torch.ones(2, device=device), 4)], [])
        dist.barrier()
        del pending


def a_dead_peer_is_an_error(rank: int, communicator: Communicator, device: str) -> None:
    """For who waits for its messages, and for who writes to it."""
    groups = [dist.new_group(timeout=5 * PATIENCE) for _ in range(2)]
    waiting, writing = (communicator.open(group, torch.device(device)) for group in groups)
    for exchange in (waiting, writing):
        _complete_step(exchange, device, 2)
    if rank == 1:
        os._exit(0)
    with pytest.raises(PeerLost) as found:
        waiting.post([], [Message(1, torch.empty(2, device=device), 4, step=5)]).wait()
    _assert_about(found.value, peer=1, step=5, direction="receive")
    large = torch.ones(1 << 22, device=device)
    with pytest.raises(PeerLost) as found:
        writing.post([Message(1, large, 5, step=6)], []).wait()
    _assert_about(found.value, peer=1, step=6, direction="send")


def _assert_about(error: RingError, *, peer: int, step: int, direction: str) -> None:
    assert (error.rank, error.peer, error.step, error.direction) == (0, peer, step, direction)
