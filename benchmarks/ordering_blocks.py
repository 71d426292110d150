"""Active blocks of neighbourhoods under each ordering of storage, and the time that they take."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import ringspan as rs
import torch
from ringspan.contracts.tokens import Tokens
from ringspan.plan.activity import Seen

from benchmarks.ordering_mass import ORDERINGS, TISSUE, blobs, tissue
from benchmarks.ordering_tables import Table, Target
from benchmarks.ordering_times import Turns

__all__ = ["counts", "tables", "targets", "timed"]

Ints = npt.NDArray[np.int64]

BLOCK = 64
OWN = "own tiles"
"""Of the pattern, which takes them where there is no layout."""
BASE = ORDERINGS[0]
PLANE = rs.Grid(128, 128)
WINDOWS, EDGES = (13, 25), ("clip", "shift")
TIMED = (("sdpa-cpu", "clip"), ("sdpa-cpu", "shift"), ("manual", "clip"))
"""On which backends, and at which edges; every ordering on the first, Hilbert on all."""
SHARES, TIME = {13: 0.33, 25: 0.46}, 0.6
"""What Hilbert should need of row-major: of the active blocks by window, and of the time."""
HEADS, HEAD_DIM = 4, 32

CASES: dict[str, tuple[Tokens, rs.Neighborhood]] = {
    **{
        f"128 x 128, window {window}, {edges}": (PLANE, rs.Neighborhood(window, edges=edges))
        for window in WINDOWS
        for edges in EDGES
    },
    "128 x 128, window 5, clip": (PLANE, rs.Neighborhood(5)),
    "48 x 80, window 7, clip": (rs.Grid(48, 80), rs.Neighborhood(7)),
    "16 x 32 x 32, window 5, clip": (rs.Grid(16, 32, 32), rs.Neighborhood(5)),
    "16 x 64 x 64, window 7, clip": (rs.Grid(16, 64, 64), rs.Neighborhood(7)),
    "blobs in 160 x 90, window 13, clip": (rs.Coordinates(blobs(160, 90)), rs.Neighborhood(13)),
    "blobs in 320 x 320, window 13, clip": (rs.Coordinates(blobs(320, 320)), rs.Neighborhood(13)),
}
QUICK = "128 x 128, window 13, clip"


def tables(*, quick: bool = False) -> Iterator[Table]:
    """Counts of active blocks."""
    cases = {QUICK: CASES[QUICK]} if quick else CASES | _on_tissue()
    rows = []
    for name, case in cases.items():
        found = counts(*case)
        shares = (found[each] / found[BASE] for each in (*ORDERINGS[1:], OWN))
        rows.append((name, found[BASE], *shares))
    header = ("neighbourhood", f"{BASE}, pairs", *ORDERINGS[1:], OWN)
    title = f"Active pairs of blocks of {BLOCK} tokens, as shares of {BASE}"
    yield Table.of("blocks", title, header, rows)


def _on_tissue() -> dict[str, tuple[Tokens, rs.Neighborhood]]:
    return {f"{TISSUE}, window 13, clip": (tissue(), rs.Neighborhood(13))}


def counts(tokens: Tokens, pattern: rs.Neighborhood) -> dict[str, int]:
    """Active pairs of blocks, stored in each ordering and in the pattern's own tiles."""
    seen = Seen.of(pattern, tokens)
    numbers = {name: rs.Layout(tokens, ordering=name).block_numbers(BLOCK) for name in ORDERINGS}
    found = {name: seen.active(number, number.max() + 1) for name, number in numbers.items()}
    return found | {OWN: seen.own}


@dataclass(frozen=True)
class Call:
    """Forward and backward of a neighbourhood on rows that were put in order beforehand."""

    pattern: rs.Neighborhood
    backend: str
    tokens: rs.Grid = PLANE

    def stored(self, name: str) -> Callable[[], object]:
        """The call for one way of storage."""
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.tokens.N, HEADS, HEAD_DIM)
        q, k, v, grad = (torch.randn(shape, generator=generator) for _ in range(4))
        how = {"tokens": self.tokens}
        if name != OWN:
            layout = rs.Layout(self.tokens, ordering=name)
            q, k, v, grad = (layout.arrange(x) for x in (q, k, v, grad))
            how = {"layout": layout}
        leaves = [x.requires_grad_() for x in (q, k, v)]

        def run() -> object:
            out = rs.attention(*leaves, pattern=self.pattern, backend=self.backend, **how)
            return torch.autograd.grad(out, leaves, grad)

        return run

    def turns(self, names: tuple[str, ...], rounds: int) -> Turns:
        """All of these, in turn."""
        return Turns.of({name: self.stored(name) for name in names}, rounds)


def timed(rounds: int) -> tuple[Table, dict[str, dict[str, list[float]]]]:
    """Forward and backward, as shares of row-major."""
    columns = (*ORDERINGS[1:], OWN)
    rows, samples = [], {}
    for window, (backend, edges) in itertools.product(WINDOWS, TIMED):
        names = columns if (backend, edges) == TIMED[0] else ("hilbert", OWN)
        turns = Call(rs.Neighborhood(window, edges=edges), backend).turns((BASE, *names), rounds)
        name = f"window {window}, {edges}, {backend}"
        ratios = (turns.ratio(each, BASE) if each in names else None for each in columns)
        rows.append((name, turns.median(BASE), *ratios))
        samples[name] = turns.samples
    header = ("neighbourhood", f"{BASE}, s", *columns)
    title = "Time, forward and backward, on 128 x 128, as shares of row-major"
    return Table.of("times", title, header, rows), samples


def targets(found: dict[str, Table]) -> list[Target]:
    """What Hilbert should need of row-major."""
    wanted = []
    for window in WINDOWS:
        for edges in EDGES:
            name = f"128 x 128, window {window}, {edges}"
            if name in {row[0] for row in found["blocks"].rows}:
                share = found["blocks"].cell(name, "hilbert")
                figure = f"active blocks, {name}, Hilbert over row-major"
                wanted.append(Target(figure, "count", share, SHARES[window]))
    if "times" in found:
        wanted += [
            Target(
                f"time, {row[0]}, Hilbert over row-major",
                "time",
                found["times"].cell(row[0], "hilbert"),
                TIME,
            )
            for row in found["times"].rows
        ]
    return wanted
