"""Whole branches, against the formula in float64: rows are read and written where they lie."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from ringspan.contracts import (
    Affine,
    Branch,
    BranchDropout,
    Indexed,
    InvalidArgument,
    MaskCase,
)
from ringspan.contracts.selection import Selection
from ringspan.testing import assert_exact
from ringspan.testing.suites.branches import BranchOperands
from ringspan.testing.suites.tiles import strided
from ringspan_triton import Triton
from torch import Tensor

torch.set_num_threads(1)

TRITON = Triton()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 2**40 + 11


@dataclass(frozen=True, eq=False)
class Case:
    """A branch of tensors of `N` rows and `M` keys, with as many heads as it reads."""

    branch: Branch
    N: int = 60
    M: int = 60
    batch: int = 2
    dtype: torch.dtype = torch.float32
    sink: Tensor | None = None

    def operands(self) -> BranchOperands:
        """Without a sink the branch comes twice: it is written, and then added to what is there."""
        draw, D, DV = torch.Generator().manual_seed(3), 16, 24
        query, key = self.branch.query, self.branch.key
        heads, kv_heads = max(query.heads) + query.group, max(key.heads) + 1
        shapes = ((self.N, heads, D), (self.M, kv_heads, D), (self.M, kv_heads, DV),
                  (self.N, heads, DV))  # fmt: skip
        made = (torch.randn(self.batch, *shape, generator=draw) for shape in shapes)
        # No two strides are what they would be of a contiguous tensor.
        tensors = (strided(x.to(DEVICE, self.dtype), "heads first") for x in made)
        sink = None if self.sink is None else self.sink.to(DEVICE)
        return BranchOperands(*tensors, (self.branch,) * (1 if self.sink is not None else 2), sink)

    def check(self) -> dict[str, Tensor]:
        """Of both passes, which must be exact."""
        operands = self.operands()
        exact = operands.exact()
        found = operands.results(TRITON, exact)
        assert_exact(found, exact)
        return found


def dilated(case: MaskCase = MaskCase.CAUSAL, **options: Any) -> Branch:
    """Windows of 30, every third row of them, from another row in each of two groups of heads."""
    rows = Affine(1, 30, 1, 3)
    query = Selection(rows, (0, 2), tiles=2, length=9, group=2)
    key = Selection(rows, (0, 1), tiles=2, length=9)
    return Branch(query, key, case, 0.25, **options)


def listed(case: MaskCase = MaskCase.FULL, **options: Any) -> Branch:
    """Rows in no order, 19 queries and 37 keys; the two groups of heads read rows of their own."""
    draw = np.random.default_rng(5)
    query = np.stack([draw.permutation(60)[:38].reshape(2, 19) for _ in range(2)], 1)
    key = np.stack([draw.permutation(80)[:74].reshape(2, 37) for _ in range(2)], 1)
    return Branch(
        Selection(Indexed(query), (0, 2), tiles=2, length=19, group=2),
        Selection(Indexed(key), (0, 1), tiles=2, length=37),
        case,
        -0.25,
        **options,
    )


def intervals(heads: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    low, high = (torch.randint(38, (2, heads, 19), generator=draw).sort(-1).values for _ in "lh")
    return {"low": (low // 2).to(DEVICE), "high": high.to(DEVICE)}


def bitmaps(queries: int, keys: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    table = torch.rand(3, queries, keys, generator=draw) < 0.4
    table[:, 4] = False
    return {"table": table.to(DEVICE), "which": torch.tensor([2, 0], device=DEVICE)}


def padding(keys: int) -> Tensor:
    return (torch.rand(2, keys, generator=torch.Generator().manual_seed(2)) < 0.7).to(DEVICE)


def dropout(queries: int, keys: int) -> BranchDropout:
    row, key = (torch.arange(n, device=DEVICE) for n in (queries, keys))
    return BranchDropout(0.3, SEED, 2 * row, 3 * key + 1)


BRANCHES = {
    "dilated full": Case(dilated(MaskCase.FULL)),
    "dilated causal": Case(dilated()),
    "dilated band": Case(dilated(MaskCase.BAND, left=2, right=1)),
    "dilated bitmap": Case(dilated(MaskCase.BITMAP, **bitmaps(9, 9))),
    "dilated causal, padded keys": Case(dilated(key_seen=padding(60))),
    "dilated causal, dropout": Case(dilated(dropout=dropout(60, 60))),
    "listed full": Case(listed(), M=80),
    "listed band": Case(listed(MaskCase.BAND, left=3, right=20), M=80),
    "listed intervals": Case(listed(MaskCase.INTERVAL, **intervals(1)), M=80),
    "listed intervals by head": Case(listed(MaskCase.INTERVAL, **intervals(2)), M=80),
    "listed bitmap": Case(listed(MaskCase.BITMAP, **bitmaps(19, 37)), M=80),
    "listed, padded keys": Case(listed(key_seen=padding(80)), M=80),
    "listed intervals, dropout": Case(
        listed(MaskCase.INTERVAL, **intervals(2), dropout=dropout(60, 80)), M=80
    ),
}
each_branch = pytest.mark.parametrize("case", BRANCHES.values(), ids=BRANCHES)


@each_branch
def test_a_branch_is_exact_and_nothing_else_is_touched(case: Case) -> None:
    case.check()


@pytest.mark.parametrize("name", ["dilated causal", "listed intervals by head"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_branch_is_exact_in_16_bits(name: str, dtype: torch.dtype) -> None:
    case = replace(BRANCHES[name], dtype=dtype)
    case.check()


@pytest.mark.parametrize("columns", [1, 60])
@pytest.mark.parametrize("name", ["dilated causal", "listed bitmap"])
def test_sinks_take_part_in_each_rows_normaliser(name: str, columns: int) -> None:
    sink = torch.randn(4, columns, generator=torch.Generator().manual_seed(4))
    sink[1] = -torch.inf
    case = replace(BRANCHES[name], sink=sink)
    case.check()


@pytest.mark.parametrize("tile_step", [0, 7, 20])
def test_gradients_of_keys_that_tiles_share_add_up(tile_step: int) -> None:
    query = Selection(Affine(0, 20, 0, 1), (0, 2), tiles=3, length=20, group=2)
    key = Selection(Affine(0, tile_step, 0, 1), (0, 1), tiles=3, length=20, overlap=True)
    case = Case(Branch(query, key, MaskCase.CAUSAL, 0.25))
    case.check()


def test_gradients_of_listed_keys_that_tiles_share_add_up() -> None:
    given = listed()
    rows = np.random.default_rng(6).permutation(80)[:37]
    # One array of rows for all tiles and heads.
    key = Selection(Indexed(np.stack([rows[None], rows[None, ::-1]])), (0, 1), 2, 37, overlap=True)
    case = Case(replace(given, key=key), M=80)
    case.check()


def test_groups_of_heads_may_read_one_key_head_in_rows_of_their_own() -> None:
    rows = Affine(0, 30, 1, 2)
    query = Selection(rows, (0, 1), tiles=2, length=13)
    key = Selection(rows, (0, 0), tiles=2, length=13)
    case = Case(Branch(query, key, MaskCase.CAUSAL, 0.25))
    case.check()


def test_several_blocks_of_queries_and_keys_are_walked_through() -> None:
    """Blocks before, within and behind those that every query of a block sees."""
    query = Selection(Affine(0, 1, 0, 1), (0,), tiles=1, length=150)
    key = Selection(Affine(0, 1, 0, 1), (0,), tiles=1, length=170)
    row = torch.arange(150, device=DEVICE)
    ends = {"low": (row - 70).clamp(0)[None, None], "high": (row + 60).clamp(max=170)[None, None]}
    band = Branch(query, key, MaskCase.BAND, 0.25, left=70, right=59)
    same = Branch(query, key, MaskCase.INTERVAL, 0.25, **ends)
    found, other = (Case(x, N=150, M=170, batch=1).check() for x in (band, same))
    for name, x in found.items():
        assert torch.equal(x, other[name]), name


def test_a_mask_without_its_tensors_is_refused() -> None:
    x = torch.randn(2, 60, 4, 16, device=DEVICE)
    with pytest.raises(InvalidArgument, match="low: expected a tensor"):
        TRITON.forward_branch(x, x[:, :, :2], x[:, :, :2], dilated(MaskCase.INTERVAL))
