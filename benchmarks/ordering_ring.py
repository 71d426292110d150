"""What an ordering of storage does to a ring: the busiest rank's work, and rows that travel."""

from __future__ import annotations

from collections.abc import Iterator

import ringspan as rs

from benchmarks.ordering_tables import Table, Target

__all__ = ["tables", "targets"]

RANKS = 4
LENGTHS = (65_536, 10_007, 4_099)
ORDERINGS = (None, "tiles", "morton", "hilbert", "gilbert")
PLANE, NEIGHBOURS = rs.Grid(128, 128), rs.Neighborhood(13)


def tables(*, quick: bool = False) -> Iterator[Table]:
    """Balance of causal dense attention, and rows that a neighbourhood has travel."""
    yield _balance(LENGTHS[-1:] if quick else LENGTHS)
    yield _rows((RANKS,) if quick else (RANKS, 16))


def _balance(lengths: tuple[int, ...]) -> Table:
    rows = [
        (f"{N:,}", busiest(rs.Layout(N, RANKS)), busiest(rs.Layout(N, RANKS, "zigzag")))
        for N in lengths
    ]
    title = f"Busiest rank over the mean work of {RANKS} ranks, causal dense attention"
    return Table.of("balance", title, ("tokens", "contiguous", "zigzag"), rows)


def busiest(layout: rs.Layout) -> float:
    """Of causal dense attention: the area of the busiest rank's tiles over the mean."""
    report = rs.explain(rs.Inputs(N=layout.N, heads=1, head_dim=64), causal=True, layout=layout)
    work = [rank.cost.flops for rank in report.ranks]
    return max(work) * len(work) / sum(work)


def _rows(sizes: tuple[int, ...]) -> Table:
    rows = []
    for ranks in sizes:
        for name in ORDERINGS:
            received = rows_received(rs.Layout(PLANE, ranks, name))
            shown = name or "contiguous"
            rows.append((f"{shown}, {ranks} ranks", sum(received), max(received)))
    what = f"`Neighborhood({NEIGHBOURS.window})` on 128 x 128"
    title = f"Key/value rows per head that a rank receives, {what}"
    return Table.of("rows", title, ("stored", "all ranks", "busiest rank"), rows)


def rows_received(layout: rs.Layout) -> list[int]:
    """By each rank, for one head's forward pass."""
    inputs = rs.Inputs(N=layout.N, heads=1, head_dim=64)
    report = rs.explain(inputs, pattern=NEIGHBOURS, layout=layout)
    return [sum(step.rows_received for step in rank.steps) for rank in report.ranks]


def targets(found: dict[str, Table]) -> list[Target]:
    """Zigzag is even, at every length."""
    return [
        Target(
            f"zigzag, {row[0]} tokens on {RANKS} ranks: busiest rank over mean",
            "count",
            row[2],
            1.05,
        )
        for row in found["balance"].rows
    ]
