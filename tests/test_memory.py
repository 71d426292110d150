"""No pattern ever needs a buffer that grows with the square of the length."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
import ringspan as rs
import torch
from ringspan.engine.plans import cached_plan
from torch.profiler import ProfilerActivity, profile

N = 24_576
SIDE = 192  # with 128 rows, as many tokens
QUADRATIC = N * N // 8
"""Bytes of the smallest thing that is quadratic: one bit for every pair."""


def odd(i: Any, j: Any) -> Any:
    return (i + j) % 2 == 1


GRID = rs.Grid(128, SIDE)
PATTERNS: dict[str, tuple[Any, dict[str, Any]]] = {
    "dense": (rs.Dense(), {}),
    "dense causal": (rs.Dense(), {"causal": True}),
    "window": (rs.Dense(window=(300, 20)), {}),
    "window causal": (rs.Dense(window=(300, 20)), {"causal": True}),
    "window along a curve, causal": (
        rs.Dense(window=(100, 100), along="hilbert"),
        {"tokens": GRID, "causal": True},
    ),
    "dilated": (rs.Dilated((512, 4096, N), (1, 8, 48)), {"causal": True}),
    "dilated along a curve": (
        rs.Dilated((512, 4096), (1, 8), along="hilbert"),
        {"tokens": GRID},
    ),
    "torchscale": (rs.Dilated.torchscale((512, 4096, N), (1, 8, 48)), {}),
    "head groups": (rs.HeadGroups((512, 8192), (1, 16)), {"causal": True}),
    "consecutive": (rs.Consecutive((512, 8192), (1, 16)), {}),
    "neighbourhood 1-D": (rs.Neighborhood(129, dilation=3), {}),
    "neighbourhood 2-D": (rs.Neighborhood(7), {"tokens": GRID}),
    "neighbourhood 3-D": (rs.Neighborhood(3), {"tokens": rs.Grid(4, 32, SIDE)}),
    "local": (rs.BlockSparse.local(64, 2, 1), {"causal": True}),
    "local and global": (rs.BlockSparse.local_global(64, 1, 1, 1), {}),
    "dilated blocks": (rs.BlockSparse.dilated_blocks(64, 3, 7), {}),
    "blocks by a predicate": (
        rs.BlockSparse.from_blocks(256, lambda i, j: abs(i - j) % 31 == 0, N),
        {},
    ),
}
MODES: dict[str, dict[str, Any]] = {
    "documents": {"documents": rs.Documents.from_lengths([1, 0, 9_999, 14_576])},
    "padding": {"key_padding": torch.arange(N)[None] < N - 1000},
    "dropout": {"dropout_p": 0.1, "backend": "manual"},
    "sink": {"sink": torch.zeros(2)},
    "stored along a curve": {"layout": rs.Layout(GRID, ordering="hilbert"), "causal": True},
}


def largest_buffer(pattern: Any, options: dict[str, Any]) -> int:
    """Bytes of the largest tensor, in kernels too, that a forward and a backward pass make."""
    q, k, v, grad_out = (torch.randn(1, N, 2, 2) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        torch.autograd.grad(rs.attention(q, k, v, pattern=pattern, **options), leaves, grad_out)
    events = trace.profiler.kineto_results.events()  # type: ignore[union-attr]
    return max(event.nbytes() for event in events if event.name() == "[memory]")


def most_memory_to_plan(pattern: Any, options: dict[str, Any]) -> int:
    """Bytes of all arrays and objects at the worst moment of planning."""
    cached_plan.cache_clear()
    inputs = rs.Inputs(N=N, heads=2, head_dim=2)
    given = {name: x for name, x in options.items() if name not in ("key_padding", "sink")}
    tracemalloc.start()
    try:
        rs.explain(inputs, pattern=pattern, **given)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("backend", ["manual", "sdpa-cpu"])
@pytest.mark.parametrize("name", list(PATTERNS))
def test_no_buffer_of_any_pattern_is_quadratic(name: str, backend: str) -> None:
    pattern, options = PATTERNS[name]
    assert 0 < largest_buffer(pattern, {**options, "backend": backend}) < QUADRATIC


@pytest.mark.parametrize("mode", list(MODES))
def test_no_buffer_of_any_mode_is_quadratic(mode: str) -> None:
    for pattern in (rs.Dilated((512, 4096), (1, 8)), rs.Dense(window=(100, 0))):
        assert 0 < largest_buffer(pattern, MODES[mode]) < QUADRATIC


@pytest.mark.parametrize("name", list(PATTERNS))
def test_no_plan_is_quadratic(name: str) -> None:
    pattern, options = PATTERNS[name]
    assert most_memory_to_plan(pattern, options) < QUADRATIC


LONGNET = rs.Dilated((2048, 4096, 8192, 16384, 32768), (1, 2, 4, 8, 16))


def peak_per_token(tokens: int) -> float:
    """Bytes of all tensors at the worst moment of a forward and backward pass, per token."""
    inputs = [torch.randn(1, tokens, 8, 64, dtype=torch.bfloat16) for _ in range(4)]
    *leaves, grad_out = (x.requires_grad_(index < 3) for index, x in enumerate(inputs))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        out = rs.attention(*leaves, pattern=LONGNET)
        grads = torch.autograd.grad(out, leaves, grad_out)
    del out, grads
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in trace.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]"
    )
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return (peak + sum(x.nbytes for x in inputs)) / tokens


def test_longnet_at_262144_tokens_fits_in_six_gigabytes() -> None:
    # At a sixteenth and at an eighth of the length, for time's sake: what a token needs is
    # constant or falls.
    short, long = peak_per_token(2**14), peak_per_token(2**15)
    assert long < 1.01 * short
    process = 600e6
    """Of Python and torch themselves, generously."""
    assert long * 262_144 + process < 6e9


def test_a_quadratic_buffer_would_be_seen() -> None:
    q = torch.randn(1, 6_000, 1, 2)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        torch.softmax(q[:, :, 0] @ q[:, :, 0].mT, -1)
    events = trace.profiler.kineto_results.events()  # type: ignore[union-attr]
    assert max(e.nbytes() for e in events if e.name() == "[memory]") >= 6_000**2 * 4
