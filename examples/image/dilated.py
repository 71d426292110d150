"""Dilated attention along each ordering: what it costs, and what it sees of a real image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import ringspan as rs
import torch

from examples.bundled import photograph
from examples.coverage import captured, captured_by_band, heads_that_show, places, sampled
from examples.image.features import features, patches
from examples.image.problem import Inputs, Problem, pass_over
from examples.image.similarity import BANDS, attention_map, bands
from examples.orderings import ORDERINGS
from examples.timing import medians

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

    from examples.coverage import Rows

__all__ = [
    "Captured",
    "bands_of_mass",
    "mass_captured",
    "mass_captured_by_band",
    "operations",
    "rows_of",
    "share_of",
    "times",
]

WAYS = ("as given", "stored", "renumbered")


@dataclass(frozen=True)
class Captured:
    """The share of an attention map's mass on tokens that are shown, by ordering."""

    photograph: str
    scale: float
    of_all: dict[str, float]
    of_others: dict[str, float]
    """Without what queries give to themselves."""


def operations(problem: Problem, ordering: str) -> int:
    """Floating-point operations of a forward pass, as `explain` counts them."""
    inputs = rs.Inputs(N=problem.grid.N, heads=problem.heads, head_dim=problem.head_dim)
    return rs.explain(inputs, pattern=problem.dilated(ordering), tokens=problem.grid).flops


def share_of(problem: Problem, ordering: str, queries: Int[Tensor, " Q"]) -> Float[Tensor, "Q N"]:
    """The share of heads in which each key is shown, along an ordering."""
    place = places(problem.grid, ordering)
    return heads_that_show(problem.dilated(), place, queries, problem.heads)


def rows_of(problem: Problem, name: str, scale: float, queries: Int[Tensor, " Q"]) -> Rows:
    """Rows of a photograph's attention map."""
    return attention_map(_features(name, problem.size), queries, scale)


@lru_cache(maxsize=8)
def _features(name: str, size: int) -> Float[Tensor, "N C"]:
    return features(patches(photograph(name), size))


def mass_captured(problem: Problem) -> list[Captured]:
    """For each photograph and scale, what each ordering captures."""
    queries = sampled(problem.grid.N, problem.queries)
    shares = {ordering: share_of(problem, ordering, queries) for ordering in ORDERINGS}
    found = []
    for name in problem.photographs:
        for scale in problem.scales:
            rows = rows_of(problem, name, scale, queries)
            others = rows.of_others()
            found.append(
                Captured(
                    name,
                    scale,
                    {ordering: captured(rows, share) for ordering, share in shares.items()},
                    {ordering: captured(others, share) for ordering, share in shares.items()},
                )
            )
    return found


def bands_of_mass(problem: Problem) -> Float[Tensor, " bands"]:
    """Of the first photograph's map, the share of the mass at each distance."""
    rows = _rows(problem)
    shares = torch.zeros(len(BANDS), dtype=rows.mass.dtype)
    shares.index_add_(0, bands(problem.grid, rows.queries).flatten(), rows.mass.flatten())
    return shares / len(rows.queries)


def mass_captured_by_band(problem: Problem) -> dict[str, Float[Tensor, " bands"]]:
    """Of the mass at each distance, the share that each ordering captures."""
    rows = _rows(problem)
    band = bands(problem.grid, rows.queries)
    return {
        ordering: captured_by_band(
            rows, share_of(problem, ordering, rows.queries), band, len(BANDS)
        )
        for ordering in ORDERINGS
    }


def _rows(problem: Problem) -> Rows:
    queries = sampled(problem.grid.N, problem.queries)
    return rows_of(problem, problem.photographs[0], problem.scale, queries)


def times(problem: Problem) -> dict[str, dict[str, float]]:
    """Median seconds of forward and backward, by way of storage and ordering.

    `"as given"`: tokens lie in row-major order. `"stored"`: they lie along the ordering, by a
    layout. `"renumbered"`: they lie along it and are taken for a plain sequence, which without
    causality and positions is the same attention.
    """
    inputs, runs = Inputs.of(problem), {}
    for ordering in ORDERINGS:
        layout = rs.Layout(problem.grid, ordering=ordering)
        stored, along = inputs.arranged(layout), problem.dilated(ordering)
        runs["as given", ordering] = pass_over(inputs, pattern=along, tokens=problem.grid)
        runs["stored", ordering] = pass_over(stored, pattern=along, layout=layout)
        runs["renumbered", ordering] = pass_over(stored, pattern=problem.dilated())
    found = medians(runs, problem.rounds)
    return {way: {ordering: found[way, ordering] for ordering in ORDERINGS} for way in WAYS}
