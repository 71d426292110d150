"""Neighbourhood attention stored along each ordering: the same result in fewer blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import ringspan as rs
import torch
from ringspan.testing import assert_exact, yardstick

from examples.coverage import sampled
from examples.image.problem import Inputs, Problem, pass_over
from examples.orderings import ORDERINGS
from examples.timing import medians

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["HEADS", "NO_LAYOUT", "Stored", "check", "stored"]

NO_LAYOUT = "no layout"
"""Tokens as given, in blocks of the pattern's own choice: patches of the grid."""
HEADS = 4
"""Half of the others: the blocks of a head are computed whole, which takes its time."""
_CHECKED = 32
"""Queries for which the formula is evaluated in float64, over all keys."""


@dataclass(frozen=True)
class Stored:
    """One window under one storage order."""

    ordering: str
    seconds: float
    """Median of forward and backward."""
    difference: float
    """The largest difference of the output from that without a layout."""


def stored(problem: Problem) -> list[Stored]:
    """The window under every storage order; each output is checked against the formula first."""
    inputs, pattern = Inputs.of(problem).heads(HEADS), rs.Neighborhood(problem.window)
    runs: dict[str, Callable[[], Tensor]] = {
        NO_LAYOUT: pass_over(inputs, pattern=pattern, tokens=problem.grid)
    }
    outs = {NO_LAYOUT: runs[NO_LAYOUT]()}
    for ordering in ORDERINGS:
        layout = rs.Layout(problem.grid, ordering=ordering)
        runs[ordering] = pass_over(inputs.arranged(layout), pattern=pattern, layout=layout)
        outs[ordering] = layout.restore(runs[ordering]())
    check(problem, inputs, outs)
    seconds = medians(runs, problem.rounds)
    return [
        Stored(name, seconds[name], float((out - outs[NO_LAYOUT]).abs().max()))
        for name, out in outs.items()
    ]


def check(problem: Problem, inputs: Inputs, outs: dict[str, Float[Tensor, "1 N H D"]]) -> None:
    """Holds outputs, in order of position, to the library's rule for exactness on some queries.

    Raises:
        AssertionError: an output is not exact.
    """
    queries = sampled(problem.grid.N, _CHECKED)
    points = torch.from_numpy(problem.grid.coordinates.copy())
    seen = (points[queries][:, None] - points[None]).abs().amax(-1) <= problem.window // 2
    exact = yardstick(inputs.q[:, queries], inputs.k, inputs.v, seen.long())
    for out in outs.values():
        assert_exact({"out": out[:, queries]}, exact)
