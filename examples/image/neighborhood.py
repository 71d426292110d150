"""Neighbourhood attention stored along each ordering: the same result in fewer blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ringspan as rs
import torch
from ringspan.testing import assert_exact, yardstick

from examples.blocks import active_blocks
from examples.coverage import sampled
from examples.image.problem import ORDERINGS, Inputs, Problem, pass_over
from examples.timing import medians

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["Stored", "check", "stored"]

_CHECKED = 32
"""Queries for which the formula is evaluated in float64, over all keys."""


@dataclass(frozen=True)
class Stored:
    """One window under one ordering."""

    window: int
    ordering: str
    active: int
    """Pairs of blocks of 64 tokens of which one sees the other."""
    of: int
    """All pairs of blocks."""
    seconds: float
    """Median of forward and backward."""
    difference: float
    """The largest difference of the output from that of row-major storage."""


def stored(problem: Problem) -> list[Stored]:
    """Every window under every ordering; each output is checked against the formula first."""
    return [found for window in problem.windows for found in _under_each(problem, window)]


def _under_each(problem: Problem, window: int) -> list[Stored]:
    inputs, pattern = Inputs.of(problem), rs.Neighborhood(window)
    layouts = {ordering: rs.Layout(problem.grid, ordering=ordering) for ordering in ORDERINGS}
    runs = {
        ordering: pass_over(inputs.arranged(layout), pattern=pattern, layout=layout)
        for ordering, layout in layouts.items()
    }
    outs = {ordering: layouts[ordering].restore(run()) for ordering, run in runs.items()}
    check(problem, inputs, window, outs)
    seconds = medians(runs, problem.rounds)
    blocks = -(-problem.grid.N // 64)
    return [
        Stored(
            window,
            ordering,
            active_blocks(pattern, layout),
            blocks * blocks,
            seconds[ordering],
            float((outs[ordering] - outs["row-major"]).abs().max()),
        )
        for ordering, layout in layouts.items()
    ]


def check(
    problem: Problem, inputs: Inputs, window: int, outs: dict[str, Float[Tensor, "1 N H D"]]
) -> None:
    """Holds outputs, in order of position, to the library's rule for exactness on some queries.

    Raises:
        AssertionError: an output is not exact.
    """
    queries = sampled(problem.grid.N, _CHECKED)
    points = torch.from_numpy(problem.grid.coordinates.copy())
    seen = (points[queries][:, None] - points[None]).abs().amax(-1) <= window // 2
    exact = yardstick(inputs.q[:, queries], inputs.k, inputs.v, seen.long())
    for out in outs.values():
        assert_exact({"out": out[:, queries]}, exact)
