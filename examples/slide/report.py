"""What the slide example found, as tables."""

from __future__ import annotations

import ringspan as rs

from examples.blocks import BLOCK, active_blocks
from examples.orderings import ORDERINGS
from examples.slide.locality import mass_captured
from examples.slide.problem import Problem
from examples.slide.runs import Run, neighborhood_runs, packed_apart, pattern_runs
from examples.slide.tissue import Slide, halves, slide
from examples.tables import Table

__all__ = ["reported"]


def reported(problem: Problem) -> list[Table]:
    """Runs everything."""
    tissue = slide(problem.size)
    found = [masses(problem, tissue), active(problem, tissue)]
    for name, pattern in problem.patterns().items():
        title = f"The encoder with the pattern {name!r}, {_size(problem, tissue)}"
        found.append(_runs(title, pattern_runs(problem, pattern, tissue)))
    title = f"The encoder with Neighborhood({problem.window}), {_size(problem, tissue)}"
    return [*found, _runs(title, neighborhood_runs(problem, tissue)), batch(problem)]


def masses(problem: Problem, tissue: Slide) -> Table:
    """What share of a local mass each pattern shows."""
    shares = mass_captured(problem, tissue.points)
    return Table(
        f"The share of a local attention mass (Gaussian, sigma {problem.sigma:g} tiles) on tiles "
        f"that a pattern shows, {tissue.points.N} tiles of {problem.size} x {problem.size}, in "
        "percent",
        ("pattern", *ORDERINGS),
        tuple(
            (name, *(f"{100 * found[ordering]:.1f}" for ordering in ORDERINGS))
            for name, found in shares.items()
        ),
    )


def active(problem: Problem, tissue: Slide) -> Table:
    """How many blocks of a neighbourhood of tiles are active."""
    counts = active_blocks(rs.Neighborhood(problem.window), tissue.points)
    pairs = (-(-tissue.points.N // BLOCK)) ** 2
    return Table(
        f"Neighborhood({problem.window}) of the same tiles: active pairs of blocks of {BLOCK}, "
        f"of {pairs}",
        ORDERINGS,
        (tuple(f"{counts[name]} ({counts[name] / pairs:.1%})" for name in ORDERINGS),),
    )


def batch(problem: Problem) -> Table:
    """Two slides of different shape in one packed batch."""
    found = packed_apart(problem, problem.patterns()["geometric"], halves(problem.size))
    return Table(
        "Two slides packed as documents and stored along Hilbert, beside each of them alone",
        ("tiles", "relative difference"),
        tuple((str(each.tiles), f"{each.difference:.1e}") for each in found),
    )


def _runs(title: str, runs: list[Run]) -> Table:
    return Table(
        f"{title}: milliseconds of a forward pass, and how far embeddings are from the first row's",
        ("tiles are", "ms", "relative difference"),
        tuple((run.way, f"{run.seconds * 1e3:.0f}", f"{run.difference:.1e}") for run in runs),
    )


def _size(problem: Problem, tissue: Slide) -> str:
    width = problem.width
    return f"{width.layers} layers of {width.embed_dim} channels, {tissue.points.N} tiles"
