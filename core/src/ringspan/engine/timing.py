"""Times a backend on a small tile of a problem, for `autotune`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from ringspan.contracts.masks import Mask, MaskCase

if TYPE_CHECKING:
    from ringspan.contracts.backend import AttentionBackend, Problem

__all__ = ["seconds"]

_LENGTH = 512
_REPEATS = 3


def seconds(backend: AttentionBackend, problem: Problem) -> float:
    """The least of three runs of a 512 x 512 tile, forward and, where needed, backward."""
    inputs = _tile(problem)
    _run(backend, problem, *inputs)
    return min(_timed(backend, problem, *inputs) for _ in range(_REPEATS))


def _tile(problem: Problem) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = (
        (problem.group_size, problem.head_dim),
        (1, problem.head_dim),
        (1, problem.value_head_dim),
        (problem.group_size, problem.value_head_dim),
    )
    dtype = getattr(torch, problem.dtype)
    return tuple(
        torch.randn(1, _LENGTH, *shape, generator=generator).to(problem.device, dtype)
        for shape in shapes
    )


def _mask(problem: Problem) -> Mask:
    """A triangle, however the mask case says it."""
    high = torch.arange(1, _LENGTH + 1, device=problem.device).view(1, 1, -1)
    if problem.mask is MaskCase.INTERVAL:
        return Mask(problem.mask, torch.zeros_like(high), high)
    if problem.mask is MaskCase.BITMAP:
        seen = torch.arange(_LENGTH, device=problem.device) < high[..., None]
        return Mask(problem.mask, seen=seen)
    return Mask(problem.mask)


def _run(
    backend: AttentionBackend,
    problem: Problem,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    grad_out: torch.Tensor,
) -> None:
    mask, scale = _mask(problem), problem.head_dim**-0.5
    out, lse = backend.forward(query, key, value, mask=mask, scale=scale)
    if problem.needs_backward:
        backend.backward(grad_out, query, key, value, out, lse, mask=mask, scale=scale)


def _timed(backend: AttentionBackend, problem: Problem, *inputs: torch.Tensor) -> float:
    _settle(problem.device)
    start = time.perf_counter()
    _run(backend, problem, *inputs)
    _settle(problem.device)
    return time.perf_counter() - start


def _settle(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
