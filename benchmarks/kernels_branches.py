"""Where triton's kernel for whole branches wins over views, a tile kernel and a merge."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from typing import Any

import ringspan as rs
import torch
from bare import candidates, named, paired
from dilated import Dilated, kernel_of_last_run
from figures import Figure, Unmeasured

__all__ = ["figures"]

BRANCHES = "triton"


def figures(problem: Dilated, pairs: int) -> Iterator[Figure]:
    """Each branch by itself, then all of them; above 1, triton wins."""
    branches = list(zip(problem.segment_lengths, problem.dilation_rates, strict=True))
    for length, rate in branches:
        pattern = rs.Dilated((length,), (rate,), head_offsets="blocked")
        yield _figure(f"segments of {length}, rate {rate}", problem, pattern, pairs)
    yield _figure("all branches", problem, problem.pattern, pairs)


def _figure(what: str, problem: Dilated, pattern: rs.Dilated, pairs: int) -> Figure:
    return Figure(
        f"dilated, {problem}, {what}: speed of {BRANCHES} over views and the best tile kernel",
        "ratio",
        lambda: _speed(problem, pattern, pairs),
    )


def _speed(problem: Dilated, pattern: rs.Dilated, pairs: int) -> tuple[float, dict[str, Any]]:
    whole = named(BRANCHES, problem.dense)
    if not whole.capabilities.branches:
        raise Unmeasured(f"{BRANCHES} declares no whole branches")
    others = [each.name for each in candidates(problem.dense) if each.name != BRANCHES]
    *leaves, grad = problem.tensors()

    def by(backends: str | list[str]) -> None:
        out = rs.attention(*leaves, pattern=pattern, causal=problem.causal, backend=backends)
        torch.autograd.grad(out, leaves, grad)

    by(others)
    views = kernel_of_last_run()
    found = paired(lambda: by(others), lambda: by(BRANCHES), pairs, problem.device)
    return found.ratio, {
        "views_on": views,
        "views_seconds": statistics.median(found.first),
        "seconds": statistics.median(found.second),
        "ratios": found.ratios,
    }
