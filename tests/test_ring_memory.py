"""The most tensor memory of a rank: a share of what one process needs, whatever the length."""

from __future__ import annotations

from typing import Any

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

HEADS, HEAD_DIM = 8, 64


def peak(rank: int, N: int, pattern: rs.Dense | rs.Dilated, message_bytes: int | None) -> int:
    """Bytes of all tensors at the worst moment of a first forward and backward pass."""
    world_size = dist.get_world_size()
    ring = {"layout": rs.Layout(N, world_size), "group": dist.new_group(list(range(world_size)))}
    rows = N // world_size
    inputs = [torch.randn(1, rows, HEADS, HEAD_DIM, dtype=torch.bfloat16) for _ in range(4)]
    *leaves, grad_out = (x.requires_grad_(index < 3) for index, x in enumerate(inputs))
    settings = {} if message_bytes is None else {"message_bytes": message_bytes}
    with rs.use(**settings), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as p:
        out = rs.attention(*leaves, pattern=pattern, **(ring if world_size > 1 else {}))
        grads = torch.autograd.grad(out, leaves, grad_out)
    del out, grads
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in p.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]"
    )
    alive = most = 0
    for _, change in changes:
        alive += change
        most = max(most, alive)
    return most + sum(x.nbytes for x in inputs)


def longnet(N: int) -> rs.Dilated:
    """w = 2048 .. N, r = 1 .. 16."""
    doublings = range((N // 2048).bit_length())
    return rs.Dilated(
        tuple(2048 << power for power in doublings), tuple(min(1 << p, 16) for p in doublings)
    )


def test_a_rank_of_four_needs_a_third_of_what_one_process_does_for_longnet(run_ring: Any) -> None:
    N = 2**14
    (alone,) = run_ring(1, peak, N, longnet(N), None)
    assert max(run_ring(4, peak, N, longnet(N), None)) <= 0.32 * alone


def test_what_a_rank_needs_grows_as_its_share_of_the_tokens(run_ring: Any) -> None:
    shares = {
        (N, world_size): max(run_ring(world_size, peak, N, longnet(N), None)) * world_size / N
        for N, world_size in ((2**13, 2), (2**14, 2), (2**15, 4))
    }
    assert max(shares.values()) < 1.1 * min(shares.values())


@pytest.mark.parametrize("N", [2**13])
def test_a_dense_ring_holds_two_small_messages_instead_of_two_shards(run_ring: Any, N: int) -> None:
    # As many messages as at 16K tokens, in a quarter of the time.
    (alone,) = run_ring(1, peak, N, rs.Dense(), None)
    assert max(run_ring(4, peak, N, rs.Dense(), 2**19)) <= 0.48 * alone
