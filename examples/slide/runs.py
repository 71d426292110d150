"""The encoder over the same tiles, fed and stored in different orders."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import ringspan as rs
import torch

from examples.slide.encoder import SlideEncoder
from examples.slide.problem import Problem
from examples.slide.tissue import Slide
from examples.timing import medians

if TYPE_CHECKING:
    from jaxtyping import Float
    from ringspan.contracts.pattern import Pattern
    from torch import Tensor

__all__ = ["Packed", "Run", "encoder_of", "neighborhood_runs", "packed_apart", "pattern_runs"]

FED_ROWS = "fed row by row"
FED_HILBERT = "fed along Hilbert"
STORED = "fed row by row, stored along Hilbert"
ALONG = "along='hilbert', stored along Hilbert"


@dataclass(frozen=True)
class Run:
    """One way to run the encoder, beside the first one."""

    way: str
    seconds: float
    """Median of a forward pass."""
    difference: float
    """Of the embeddings, relative to the length of the first way's."""


def encoder_of(problem: Problem, pattern: Pattern) -> SlideEncoder:
    """With the same random weights every time."""
    torch.manual_seed(0)
    return SlideEncoder(pattern, problem.width).eval()


def pattern_runs(problem: Problem, pattern: rs.Dilated, tissue: Slide) -> list[Run]:
    """Which order of tiles a dilated pattern sees, and which they are stored in."""
    encoder = encoder_of(problem, pattern)
    layout = rs.Layout(tissue.points, ordering="hilbert")
    ways: dict[str, Callable[[], Tensor]] = {
        FED_ROWS: partial(encoder, tissue.x, tissue.points),
        FED_HILBERT: partial(_fed, encoder, tissue),
        STORED: partial(encoder, tissue.x, tissue.points, layout=layout),
    }
    if type(pattern) is rs.Dilated:
        along = encoder_of(problem, dataclasses.replace(pattern, along="hilbert"))
        ways[ALONG] = partial(along, tissue.x, tissue.points, layout=layout)
    return _compared(problem, ways)


def neighborhood_runs(problem: Problem, tissue: Slide) -> list[Run]:
    """A neighbourhood, in blocks of its own choice and in those of storage orders."""
    encoder = encoder_of(problem, rs.Neighborhood(problem.window))
    ways: dict[str, Callable[[], Tensor]] = {"no layout": partial(encoder, tissue.x, tissue.points)}
    for ordering in ("row-major", "hilbert"):
        layout = rs.Layout(tissue.points, ordering=ordering)
        ways[f"stored along {ordering}"] = partial(encoder, tissue.x, tissue.points, layout=layout)
    return _compared(problem, ways)


@dataclass(frozen=True)
class Packed:
    """A slide of a packed batch."""

    tiles: int
    difference: float
    """Of its embeddings, relative to their length when the slide is alone."""


def packed_apart(problem: Problem, pattern: rs.Dilated, slides: list[Slide]) -> list[Packed]:
    """Slides of different shape as one batch of packed documents, beside each of them alone."""
    points, documents = rs.Coordinates.pack([each.points for each in slides])
    encoder = encoder_of(problem, pattern)
    layout = rs.Layout(points, ordering="hilbert", documents=documents)
    with torch.no_grad():
        x = torch.cat([each.x for each in slides], dim=1)
        together = encoder(x, points, layout=layout, documents=documents)
        parts = together.split([each.points.N for each in slides], dim=1)
        return [
            Packed(each.points.N, _apart(part, encoder(each.x, each.points)))
            for each, part in zip(slides, parts, strict=True)
        ]


def _fed(encoder: SlideEncoder, tissue: Slide) -> Float[Tensor, "1 N E"]:
    """Tiles numbered along the curve, and the result in their order again."""
    fed, layout = tissue.fed("hilbert")
    return layout.restore(encoder(fed.x, fed.points))


def _compared(problem: Problem, ways: dict[str, Callable[[], Tensor]]) -> list[Run]:
    with torch.no_grad():
        outs = {way: run() for way, run in ways.items()}
        seconds = medians(ways, problem.rounds)
    first = next(iter(outs.values()))
    return [Run(way, seconds[way], _apart(out, first)) for way, out in outs.items()]


def _apart(x: Tensor, y: Tensor) -> float:
    return float((x - y).norm() / y.norm())
