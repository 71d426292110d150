"""How much of a local attention mass a pattern sees of real tiles, and in how many blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ringspan as rs
import torch

from examples.coverage import Rows, captured, heads_that_show, places, sampled
from examples.orderings import ORDERINGS
from examples.slide.problem import Problem

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["local_mass", "mass_captured"]


def local_mass(points: rs.Coordinates, queries: Int[Tensor, " Q"], sigma: float) -> Rows:
    """An attention map of which nothing is known but that near tiles matter: a Gaussian."""
    at = torch.from_numpy(points.coordinates.copy()).double()
    squares = (at[queries][:, None] - at[None]).square().sum(-1)
    return Rows(queries, torch.softmax(-squares / (2 * sigma**2), dim=-1))


def mass_captured(problem: Problem, points: rs.Coordinates) -> dict[str, dict[str, float]]:
    """By pattern and ordering, the share of that mass on tiles which are shown."""
    rows = local_mass(points, sampled(points.N, problem.queries), problem.sigma)
    return {
        name: {
            ordering: _captured(problem, pattern, places(points, ordering), rows)
            for ordering in ORDERINGS
        }
        for name, pattern in problem.patterns().items()
    }


def _captured(problem: Problem, pattern: rs.Dilated, place: Int[Tensor, " N"], rows: Rows) -> float:
    return captured(rows, heads_that_show(pattern, place, rows.queries, problem.width.heads))
