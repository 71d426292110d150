"""How much of a local attention mass a dilated pattern keeps along each ordering.

A token's mass is a Gaussian of its distance to other tokens, out to five sigma, itself included.
Kept is what falls on tokens that its query sees: under the library's own pattern, laid over the
tokens as a call lays it. The figure is the mean over tokens and heads.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import ringspan as rs
from ringspan.contracts import Cliques, Domain
from ringspan.contracts.tokens import Sequence as Plain
from ringspan.contracts.tokens import Tokens
from ringspan.plan.orders import order
from ringspan.plan.schedule import parts_of

from benchmarks.ordering_tables import Table, Target

__all__ = [
    "ORDERINGS",
    "TISSUE",
    "blobs",
    "captured",
    "pattern",
    "photographs",
    "tables",
    "targets",
    "tissue",
]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

ORDERINGS = ("row-major", "snake", "tiles", "morton", "hilbert", "gilbert")
OFFSETS = ("modulo", "blocked")
"""Rules of `head_offsets`: the library's own, and torchscale's."""
HEADS, REACH = 8, 5
"""Heads of the pattern, and how many sigma far the mass is counted."""


def pattern(along: str | rs.Along | None, N: int = 4096, offsets: str = "modulo") -> rs.Dilated:
    """Segments of 64, 256, 1,024 .. tokens up to `N`, thinned to every 1st, 2nd, 4th .."""
    lengths = [64]
    while lengths[-1] < N:
        lengths.append(min(4 * lengths[-1], N))
    rates = tuple(2**branch for branch in range(len(lengths)))
    return rs.Dilated(tuple(lengths), rates, head_offsets=offsets, along=along)


def captured(
    pattern: rs.Dilated, tokens: Tokens, sigmas: Sequence[float], points: Ints | None = None
) -> dict[float, float]:
    """The share of the mass that is kept, for each sigma.

    Args:
        pattern: any pattern whose parts are cliques.
        tokens: what it is laid over.
        sigmas: in units of the coordinates.
        points: `[N, axes]`, where distances are measured; None: the tokens' own coordinates.
    """
    points = tokens.coordinates if points is None else points
    seen = Seen.of(pattern, tokens)
    total = {sigma: np.zeros(tokens.N) for sigma in sigmas}
    kept = {sigma: np.zeros(tokens.N) for sigma in sigmas}
    for square, query, key in neighbours(points, REACH * max(sigmas)):
        share = seen.share(query, key)
        for sigma in sigmas:
            if square <= (REACH * sigma) ** 2:
                mass = np.exp(-square / (2 * sigma**2))
                # In cliques, whoever sees is seen.
                for token in (query, key) if square else (query,):
                    total[sigma][token] += mass
                    kept[sigma][token] += mass * share
    return {sigma: float((kept[sigma] / total[sigma]).mean()) for sigma in sigmas}


@dataclass(frozen=True)
class Seen:
    """Which cliques every token is in, part by part."""

    heads: tuple[tuple[int, ...], ...]
    clique: tuple[Ints, ...]
    """`[N]` for each part: the number of the token's clique, -1 where it has none."""

    @classmethod
    def of(cls, pattern: rs.Dilated, tokens: Tokens) -> Seen:
        heads, cliques = [], []
        for _, part in parts_of(pattern, Domain(tokens, HEADS, HEADS, order)):
            assert isinstance(part, Cliques)
            sets = part.sets.listed()
            clique = np.full(tokens.N, -1)
            clique[sets.rows] = np.repeat(np.arange(len(sets.bounds) - 1), np.diff(sets.bounds))
            heads.append(part.heads)
            cliques.append(clique)
        return cls(tuple(heads), tuple(cliques))

    def share(self, query: Ints, key: Ints) -> Floats:
        """Of each pair of tokens, the share of heads in which the query sees the key."""
        seen = np.zeros((HEADS, len(query)), np.bool_)
        for heads, clique in zip(self.heads, self.clique, strict=True):
            seen[list(heads)] |= (clique[query] == clique[key]) & (clique[query] >= 0)
        return seen.mean(axis=0)


def neighbours(points: Ints, radius: float) -> Iterator[tuple[int, Ints, Ints]]:
    """All pairs of tokens within `radius`, each once: squared distance, and two tokens' numbers."""
    reach = np.minimum(int(radius), np.ptp(points, axis=0))
    cells = points - points.min(axis=0) + reach
    number = np.full(cells.max(axis=0) + reach + 1, -1)
    number[tuple(cells.T)] = np.arange(len(points))
    for offset in itertools.product(*(range(-size, size + 1) for size in reach.tolist())):
        square = sum(step**2 for step in offset)
        if square <= radius**2 and offset >= (0,) * len(offset):
            found = number[tuple((cells + offset).T)]
            query = np.flatnonzero(found >= 0)
            yield square, query, found[query]


def blobs(height: int, width: int) -> Ints:
    """The cells of a plane that lie within some blobs with ragged edges: `[N, 2]`, row-major."""
    random = np.random.default_rng(0)
    row, column = np.mgrid[:height, :width]
    field = np.zeros((height, width))
    for _ in range(12):
        centre = random.uniform((0, 0), (height, width))
        square = (row - centre[0]) ** 2 + (column - centre[1]) ** 2
        field += np.exp(-square / (2 * (min(height, width) / random.uniform(8, 16)) ** 2))
    return np.argwhere(field + random.normal(0, 0.08, field.shape) > 0.45)


PLANES: dict[str, tuple[Tokens, tuple[float, ...]]] = {
    "64 x 64": (rs.Grid(64, 64), (1, 2, 4)),
    "48 x 80": (rs.Grid(48, 80), (1, 2, 4)),
    "128 x 128": (rs.Grid(128, 128), (1, 2, 4)),
    "16 x 16 x 16": (rs.Grid(16, 16, 16), (1, 2)),
    "blobs in 96 x 96": (rs.Coordinates(blobs(96, 96)), (1, 2, 4)),
    "blobs in 160 x 90": (rs.Coordinates(blobs(160, 90)), (1, 2, 4)),
}
FIRST, TISSUE = "64 x 64", "tissue in 128 x 128"
MASKS = ("blobs", "tissue")


def tables(*, quick: bool = False) -> Iterator[Table]:
    """Shares on grids and masks, on photographs, on text, and for two rules of offsets."""
    planes = {FIRST: PLANES[FIRST]} if quick else PLANES | {TISSUE: (tissue(), (1, 2, 4))}
    yield _planes(planes)
    yield _offsets()
    yield _text(512 if quick else 4096)
    if not quick:
        yield from photographs(quick=False)


def tissue() -> Tokens:
    """Tiles of stained colon, in scikit-image's picture `ihc`."""
    # Here, for scikit-image is wanted for this one mask only.
    from examples.slide.tissue import slide

    return slide(128).points


def _planes(planes: Mapping[str, tuple[Tokens, tuple[float, ...]]]) -> Table:
    rows = []
    for name, (tokens, sigmas) in planes.items():
        found = [captured(pattern(each, tokens.N), tokens, sigmas) for each in ORDERINGS]
        rows += [
            (f"{name}, sigma {sigma:g}", tokens.N, *(shares[sigma] for shares in found))
            for sigma in sigmas
        ]
    return Table.of(
        "captured", "Share of a local mass that is kept", ("tokens", "N", *ORDERINGS), rows
    )


def _offsets() -> Table:
    tokens = rs.Grid(64, 64)
    rows = [
        (f"`{rule}`", *(captured(pattern(each, 4096, rule), tokens, (2,))[2] for each in ORDERINGS))
        for rule in OFFSETS
    ]
    title = "The same on 64 x 64, sigma 2, by the rule of `head_offsets`"
    return Table.of("offsets", title, ("rule", *ORDERINGS), rows)


def _text(N: int) -> Table:
    line = np.arange(N)[:, None]
    ways = {
        "along positions": None,
        "each segment folded": rs.Along("hilbert", fold=True),
        "the whole text folded": rs.Along("hilbert", fold=True, chunk=N),
    }
    sigmas = (2, 8, 32)
    rows = [
        (
            f"{name}, `{offsets}`",
            *captured(pattern(way, N, offsets), Plain(N), sigmas, line).values(),
        )
        for name, way in ways.items()
        for offsets in OFFSETS
    ]
    header = ("", *(f"sigma {sigma}" for sigma in sigmas))
    return Table.of(
        "text", f"Share of a local mass that is kept, {N:,} tokens of text", header, rows
    )


def photographs(*, quick: bool) -> Iterator[Table]:
    """Attention maps that know of no distances, from the example of images."""
    # Here, as for tissue.
    from examples.image import Problem
    from examples.image.report import distances, masses

    problem = Problem.quick() if quick else Problem()
    of_all, of_others = masses(problem)
    yield Table.of("photographs", *of_all)
    yield Table.of("photographs, others", *of_others)
    yield Table.of("distances", *distances(problem))


def targets(found: dict[str, Table]) -> list[Target]:
    """What the shares should reach."""
    first = f"{FIRST}, sigma 2"
    plane = found["captured"]
    masks = [row[0] for row in plane.rows if row[0].startswith(MASKS)]
    least = [plane.cell(name, "hilbert") - plane.cell(name, "morton") for name in masks]
    kept = f"mass kept on {FIRST}, sigma 2"
    wanted = [
        Target(f"{kept}, Hilbert", "count", plane.cell(first, "hilbert"), 0.73, at_least=True)
    ]
    if least:
        name = "mass kept on masks, Hilbert less Morton: the least difference"
        wanted.append(Target(name, "count", min(least), 0.0, at_least=True))
    return wanted
