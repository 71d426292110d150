"""Every pattern in every mode, as data."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass, replace
from typing import Any

import ringspan as rs
import torch
from ringspan.testing.case import Case
from ringspan.testing.named import Named, Periodic

__all__ = ["MODES", "ROWS", "Row", "in_mode"]

SHAPES = {"heads": 4, "kv_heads": 4, "head_dim": 4, "value_head_dim": 4}
BRANCHES = {"segment_lengths": (12, 36), "dilation_rates": (1, 3)}
PREDICATE = Periodic(("0111", "1010", "1101"))
POSITIONAL = ("segment_lengths", "dilation_rates", "block_size", "predicate", "N", "tokens")


@dataclass(frozen=True)
class Row:
    """A pattern, and the grid that it is laid over if there is one."""

    pattern: Named
    grid: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """The pattern as it is written in Python, without the arguments of its predicate."""
        fields = {**self.pattern.fields}
        written = []
        for name, value in fields.items():
            shown = name if isinstance(value, Periodic) else repr(value)
            written.append(shown if name in POSITIONAL else f"{name}={shown}")
        where = f" on `Grid{self.grid}`" if self.grid else ""
        return f"`{self.pattern.kind}({', '.join(written)})`{where}"

    @property
    def case(self) -> Case:
        """The pattern in no mode at all."""
        N = math.prod(self.grid) if self.grid else 36
        return Case(N=N, pattern=self.pattern, grid=self.grid, **SHAPES)


def _row(kind: str, grid: tuple[int, ...] = (), **fields: Any) -> Row:
    return Row(Named(kind, fields), grid)


ROWS = [
    _row("Dense"),
    _row("Dense", window=(9, 4)),
    _row("Dilated", **BRANCHES),
    _row("Dilated", **BRANCHES, head_offsets="query"),
    _row("Dilated", **BRANCHES, head_offsets="blocked"),
    _row("Dilated", **BRANCHES, head_offsets=(0, 2, 1, 2)),
    _row("Dilated.torchscale", **BRANCHES),
    _row("HeadGroups", **BRANCHES),
    _row("Consecutive", **BRANCHES),
    _row("Neighborhood", window=5, dilation=2, stride=3),
    _row("Neighborhood", window=5, edges="shift"),
    _row("Neighborhood", (6, 6), window=(3, 4), dilation=(2, 1)),
    _row("Neighborhood", (6, 6), window=(3, 2), stride=2, edges="shift"),
    _row("Neighborhood", (3, 3, 4), window=2, stride=(2, 1, 1), causal_axes=(0,)),
    _row("Neighborhood", (3, 3, 4), window=2, edges="shift"),
    _row("BlockSparse.local", block_size=5, left=1, right=1),
    _row("BlockSparse.local_global", block_size=5, left=1, right=0, global_blocks=1),
    _row("BlockSparse.dilated_blocks", block_size=4, reach=2, dilation=3),
    _row("BlockSparse.from_blocks", block_size=5, predicate=PREDICATE, N=36),
    _row("BlockSparse.from_mask", block_size=5, predicate=PREDICATE, tokens=36),
]

CHUNK = tuple(range(20, 31))
STORED, ALONG, EQUAL = "layout", "along", (18, 18)
MODES: dict[str, dict[str, dict[str, Any]]] = {
    "What is seen": {
        "plain": {},
        "causal": {"causal": True},
        "documents": {"documents": (13, 23)},
        "equal documents": {"documents": EQUAL},
        "padding": {"padding": "scattered", "batch": 2},
        "sink": {"sink": 2.0},
        "dropout": {"dropout_p": 0.3},
        "chunk": {"positions": CHUNK},
        "causal chunk": {"positions": CHUNK, "causal": True},
        "cross": {"cross": 11},
    },
    "How it comes": {
        "GQA": {"kv_heads": 2},
        "Dv != D": {"value_head_dim": 3},
        STORED: {},
        ALONG: {},
        "float64": {"dtype": torch.float64},
        "float32": {"dtype": torch.float32},
        "bfloat16": {"dtype": torch.bfloat16},
        "float16": {"dtype": torch.float16},
        "deterministic": {},
        "together": {
            "causal": True,
            "documents": EQUAL,
            "padding": "right",
            "sink": 2.0,
            "batch": 2,
            "kv_heads": 2,
            "value_head_dim": 3,
        },
    },
}
"""For each table its columns, and what a mode changes of a plain case; `in_mode` does the rest."""


def in_mode(row: Row, mode: str, changes: dict[str, Any]) -> Case | str:
    """The pattern in a mode; where it has no argument for the mode, a sentence that says so."""
    case = replace(row.case, **changes)
    if mode == STORED:
        return _stored(case)
    if mode == ALONG:
        return _along(case)
    return case if case.documents is None else _packed(case)


def _packed(case: Case) -> Case:
    # One grid cannot hold several documents, points can.
    case = replace(case, gaps=bool(case.grid))
    if case.documents != EQUAL:
        return case
    # Blocks that are evaluated beforehand are so for the tokens of a document.
    evaluated = {name: EQUAL[0] for name in ("N", "tokens") if name in case.pattern.fields}
    return replace(case, pattern=_with(case.pattern, **evaluated))


def _stored(case: Case) -> Case:
    if case.pattern.kind == "Neighborhood" and not case.grid:
        # On a grid it would be another pattern, and a sequence has no other order.
        return replace(case, stored="identity")
    return replace(case, stored="hilbert", grid=case.grid or (6, 6))


def _along(case: Case) -> Case | str:
    builder: Any = rs
    for part in case.pattern.kind.split("."):
        builder = getattr(builder, part)
    if "along" not in inspect.signature(builder).parameters:
        return f"`along`: not an argument of `{case.pattern.kind}`"
    return replace(case, grid=(6, 6), pattern=_with(case.pattern, along="hilbert"))


def _with(pattern: Named, **fields: Any) -> Named:
    return Named(pattern.kind, {**pattern.fields, **fields})
