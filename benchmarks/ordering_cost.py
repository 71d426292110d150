"""What ordering costs: putting rows in order and back, and finding the order once."""

from __future__ import annotations

from collections.abc import Callable

import ringspan as rs
import torch

from benchmarks import curves
from benchmarks.ordering_tables import Table, Target
from benchmarks.ordering_times import CPU, Turns

__all__ = ["invariance", "moved", "orders", "targets"]

PLANE, HEADS, HEAD_DIM, LAYERS = rs.Grid(256, 256), 4, 32, 12
LIMIT = 0.01
PATTERNS = {
    "`Neighborhood(13)`": rs.Neighborhood(13),
    "`Dilated((1024, 4096, 16384, 65536), (1, 4, 16, 64))` along hilbert": rs.Dilated(
        (1024, 4096, 16384, 65536), (1, 4, 16, 64), along="hilbert"
    ),
}


def moved(rounds: int) -> tuple[Table, dict[str, dict[str, list[float]]]]:
    """Arranging and restoring once, as a share of the attention of twelve layers."""
    layout = rs.Layout(PLANE, ordering="hilbert")
    x = torch.randn(1, PLANE.N, HEADS * HEAD_DIM, requires_grad=True)
    upstream = torch.randn_like(x)

    def move() -> object:
        return torch.autograd.grad(layout.restore(layout.arrange(x)), x, upstream)

    functions: dict[str, Callable[[], object]] = {"move": move}
    functions |= {name: _attention(pattern, layout) for name, pattern in PATTERNS.items()}
    turns = Turns.of(functions, rounds)
    rows = [
        (name, turns.median(name), turns.median("move"), turns.ratio("move", name) / LAYERS)
        for name in PATTERNS
    ]
    header = ("attention", "one layer, s", "arrange and restore, s", f"share of {LAYERS} layers")
    title = f"Ordering {PLANE.N:,} tokens of {HEADS * HEAD_DIM} numbers, forward and backward"
    return Table.of("moved", title, header, rows), {"moved": turns.samples}


def _attention(pattern: rs.Neighborhood | rs.Dilated, layout: rs.Layout) -> Callable[[], object]:
    leaves = [torch.randn(1, layout.N, HEADS, HEAD_DIM, requires_grad=True) for _ in range(3)]
    upstream = torch.randn(1, layout.N, HEADS, HEAD_DIM)

    def run() -> object:
        out = rs.attention(*leaves, pattern=pattern, layout=layout)
        return torch.autograd.grad(out, leaves, upstream)

    return run


def orders(repeats: int) -> Table:
    """Milliseconds until an order is found, which happens once for equal tokens."""
    here = curves.measured(PLANE.N, repeats, CPU)
    found = {f"{PLANE}": here[f"{PLANE}"], **curves.measured(1_000_000, repeats, CPU)}
    columns = tuple(here[f"{PLANE}"])
    rows = [
        (_title(name), *(round(1000 * row[each]) for each in columns))
        for name, row in found.items()
    ]
    return Table.of("orders", "Finding an order, ms", ("tokens", *columns), rows)


def _title(tokens: str) -> str:
    return f"`{tokens}`" if tokens.startswith("Grid") else f"a million random points, {tokens}"


def invariance(side: int = 64) -> Table:
    """How far dense attention on rows stored along a curve is from that in order of position."""
    layout = rs.Layout(rs.Grid(side, side), ordering="hilbert")
    rows = []
    for dtype in (torch.float32, torch.float64):
        generator = torch.Generator().manual_seed(0)
        shape = (1, layout.N, 2, HEAD_DIM)
        q, k, v = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(3))
        stored = [layout.arrange(x) for x in (q, k, v)]
        straight = layout.arrange(rs.attention(q, k, v))
        found = (rs.attention(*stored), rs.attention(*stored, layout=layout))
        largest = ((out - straight).abs().max().item() for out in found)
        rows.append((str(dtype).removeprefix("torch."), *largest))
    title = f"Dense attention on {layout.N:,} tokens along hilbert: largest difference of outputs"
    header = ("dtype", "rows permuted", "the same with `layout=`")
    return Table.of("invariance", title, header, rows)


def targets(found: dict[str, Table]) -> list[Target]:
    """Ordering is nearly free."""
    if "moved" not in found:
        return []
    return [
        Target(f"arrange and restore over {LAYERS} layers of {row[0]}", "time", row[-1], LIMIT)
        for row in found["moved"].rows
    ]
