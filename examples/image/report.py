"""What the image example found, as tables."""

from __future__ import annotations

from collections.abc import Iterable

import ringspan as rs

from examples.blocks import BLOCK, active_blocks
from examples.image.dilated import (
    bands_of_mass,
    mass_captured,
    mass_captured_by_band,
    operations,
    times,
)
from examples.image.neighborhood import HEADS, stored
from examples.image.problem import Problem, rectangles
from examples.image.similarity import BANDS
from examples.orderings import ORDERINGS
from examples.tables import Table

__all__ = ["reported"]


def reported(problem: Problem) -> list[Table]:
    """Runs everything."""
    return [
        costs(problem),
        *masses(problem),
        distances(problem),
        active(problem),
        neighborhoods(problem),
    ]


def costs(problem: Problem) -> Table:
    """The same operations along every ordering, and the time they take."""
    seconds = times(problem)
    return Table(
        f"{problem.dilated()!r} over {problem.grid}, {problem.heads} heads of "
        f"{problem.head_dim}: operations of a forward pass, and milliseconds of forward and "
        "backward",
        ("ordering", "GFLOP", *seconds),
        tuple(
            (
                ordering,
                f"{operations(problem, ordering) / 1e9:.3f}",
                *(f"{found[ordering] * 1e3:.0f}" for found in seconds.values()),
            )
            for ordering in ORDERINGS
        ),
    )


def masses(problem: Problem) -> list[Table]:
    """What share of real attention maps lies on keys that are shown."""
    found = mass_captured(problem)
    header = ("photograph", "scale", *ORDERINGS)
    return [
        Table(
            "The share of real attention maps' mass that the pattern shows, in percent",
            header,
            tuple((x.photograph, f"{x.scale:g}", *_percent(x.of_all.values())) for x in found),
        ),
        Table(
            "The same without the mass that queries give to themselves",
            header,
            tuple((x.photograph, f"{x.scale:g}", *_percent(x.of_others.values())) for x in found),
        ),
    ]


def distances(problem: Problem) -> Table:
    """The same at each distance from the query."""
    shown = mass_captured_by_band(problem)
    return Table(
        f"{problem.photographs[0]} at scale {problem.scale:g}: how much of the mass lies at each "
        "distance (in patches), and the share of that which is shown, in percent",
        ("along", *BANDS),
        (
            ("(of all mass)", *_percent(bands_of_mass(problem).tolist())),
            *((ordering, *_percent(shown[ordering].tolist())) for ordering in ORDERINGS),
        ),
    )


def active(problem: Problem) -> Table:
    """How many pairs of blocks neighbourhoods have under every ordering."""
    cases = [(problem.grid, window) for window in problem.windows]
    cases += [(grid, problem.window) for grid in rectangles(problem)]
    columns = [_counted(grid, window) for grid, window in cases]
    return Table(
        f"Active pairs of blocks of {BLOCK} tokens, and their share of all pairs",
        ("ordering", *(f"Neighborhood({window}) over {grid}" for grid, window in cases)),
        tuple((ordering, *(column[ordering] for column in columns)) for ordering in ORDERINGS),
    )


def _counted(grid: rs.Grid, window: int) -> dict[str, str]:
    pairs = (-(-grid.N // BLOCK)) ** 2
    counts = active_blocks(rs.Neighborhood(window), grid)
    return {name: f"{count} ({count / pairs:.1%})" for name, count in counts.items()}


def neighborhoods(problem: Problem) -> Table:
    """The same neighbourhood under every storage order."""
    return Table(
        f"Neighborhood({problem.window}) over {problem.grid}, {HEADS} heads of {problem.head_dim}, "
        "stored along each ordering: milliseconds of forward and backward, and the largest "
        "difference of the output",
        ("stored", "ms", "difference"),
        tuple(
            (found.ordering, f"{found.seconds * 1e3:.0f}", f"{found.difference:.1e}")
            for found in stored(problem)
        ),
    )


def _percent(shares: Iterable[float]) -> list[str]:
    return [f"{share:.1%}".removesuffix("%") for share in shares]
