"""Dense causal attention through the front door, beside the best kernel called by itself."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import ringspan as rs
import torch
from bare import Shape, best, flops, paired
from figures import Figure, Target

__all__ = ["figures"]

TARGET = Target(0.97)


def figures(shape: Shape, pairs: int, short: int) -> Iterator[Figure]:
    """Forward, and forward with backward."""
    for backward in (False, True):
        what = "forward + backward" if backward else "forward"
        mask = "causal" if shape.causal else "full"
        yield Figure(
            f"dense {mask}, {shape.length} tokens, {what}: rate over the best bare kernel",
            "ratio",
            partial(_ratio, shape, pairs, short, backward),
            TARGET,
        )


def _ratio(shape: Shape, pairs: int, short: int, backward: bool) -> tuple[float, dict[str, Any]]:
    fastest = best(shape, backward=backward, short=short)
    tensors = shape.tensors()
    leaves = [x.detach().requires_grad_(backward) for x in tensors[:3]]

    def front_door() -> None:
        out = rs.attention(*leaves, causal=shape.causal)
        if backward:
            torch.autograd.grad(out, leaves, tensors[3])

    found = paired(
        shape.calls(fastest.backend, backward=backward, tensors=tensors),
        front_door,
        pairs,
        shape.device,
    )
    work = flops(shape, backward=backward)
    return found.ratio, {
        "best_bare": fastest.backend.name,
        "broken": fastest.broken,
        "bare_teraflops": {name: work / each / 1e12 for name, each in fastest.seconds.items()},
        "front_door_teraflops": work / statistics.median(found.second) / 1e12,
        "ran": ran(),
        "ratios": found.ratios,
    }


def ran() -> list[str]:
    """The backends of the last call, by what they were chosen for."""
    run = rs.last_run()
    assert run is not None
    return [f"{name}: {decision.chosen}" for name, decision in run.decisions.items()]
