"""Whole branches, against the formula in float64: rows are read and written where they lie."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from ringspan.contracts import (
    Affine,
    Branch,
    BranchDropout,
    Grads,
    Indexed,
    InvalidArgument,
    MaskCase,
    TileOutput,
    kept,
)
from ringspan.contracts.selection import Selection
from ringspan.testing import assert_exact, yardstick
from ringspan.testing.accuracy import Yardstick
from ringspan.testing.formula import Extras
from ringspan_triton import Triton
from torch import Tensor

torch.set_num_threads(1)

TRITON = Triton()
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SEED = 2**40 + 11


@dataclass(frozen=True, eq=False)
class Case:
    """A branch with the tensors it is a branch of, `N` rows and `M` keys."""

    branch: Branch
    kv_heads: int
    N: int = 60
    M: int = 60
    batch: int = 2
    D: int = 16
    DV: int = 24
    dtype: torch.dtype = torch.float32
    sink: Tensor | None = None
    tensors: tuple[Tensor, ...] = field(init=False)

    def __post_init__(self) -> None:
        draw = torch.Generator().manual_seed(3)
        heads = self.kv_heads * self.branch.query.group * self.shared
        shapes = ((self.N, heads, self.D), (self.M, self.kv_heads, self.D),
                  (self.M, self.kv_heads, self.DV), (self.N, heads, self.DV))  # fmt: skip
        made = [torch.randn(self.batch, *shape, generator=draw).to(self.dtype) for shape in shapes]
        # Heads first in memory: no two strides are what they would be of a contiguous tensor.
        made = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in made]
        object.__setattr__(self, "tensors", tuple(made))

    @property
    def shared(self) -> int:
        """Groups that read the same key/value head."""
        return max(self.branch.key.heads.count(head) for head in set(self.branch.key.heads))

    @property
    def heads(self) -> int:
        return int(self.tensors[0].shape[2])

    def rows(self, selection: Selection) -> Tensor:
        """Row numbers `[T, K, L]`."""
        K = len(selection.heads)
        if isinstance(selection.rows, Indexed):
            index = torch.from_numpy(selection.rows.rows)
            return index.expand(selection.tiles, K, selection.length)
        rows, ranges = selection.rows, (selection.tiles, K, selection.length)
        t, k, i = torch.meshgrid(*(torch.arange(n) for n in ranges), indexing="ij")
        return rows.start + t * rows.tile_step + k * rows.head_step + i * rows.step

    def multiplicity(self) -> Tensor:
        """How often each query of each head sees each key, `[B, H, N, M]`, by the letter."""
        b, query, key = self.branch, self.rows(self.branch.query), self.rows(self.branch.key)
        seen = torch.zeros(self.batch, self.heads, self.N, self.M, dtype=torch.int64)
        for tile in range(b.query.tiles):
            for number, first in enumerate(b.query.heads):
                here = self._tile(tile, number)
                at = key[tile, number]
                for head in range(first, first + b.query.group):
                    part = seen[:, head][:, query[tile, number]]
                    part[:, :, at] += here.long()
                    seen[:, head, query[tile, number]] = part
        if b.key_seen is not None:
            seen *= b.key_seen[:, None, None].long()
        return seen

    def _tile(self, tile: int, number: int) -> Tensor:
        b = self.branch
        i, j = torch.arange(b.query.length)[:, None], torch.arange(b.key.length)
        if b.case is MaskCase.CAUSAL:
            return j <= i
        if b.case is MaskCase.BAND:
            return (i - b.left <= j) & (j <= i + b.right)
        if b.case is MaskCase.INTERVAL:
            low, high = (x[tile, min(number, x.shape[1] - 1)][:, None] for x in (b.low, b.high))
            return (low <= j) & (j < high)
        if b.case is MaskCase.BITMAP:
            return b.table[b.which[tile]]
        return torch.ones(len(i), len(j), dtype=torch.bool)

    def exact(self) -> Yardstick:
        q, k, v, grad_out = self.tensors
        extras = Extras()
        if self.branch.dropout is not None:
            d = self.branch.dropout
            numbers = torch.arange(self.batch)[:, None], torch.arange(self.heads)[None]
            keep = kept(d.p, d.seed, *numbers, d.query_positions, d.key_positions)
            keep = keep.expand(self.batch, self.heads, self.N, self.M)
            extras = Extras(keep=keep, dropout_p=d.p)
        m = self.multiplicity()
        sink = None
        if self.sink is not None:
            # Rows of no tile have no sink either.
            touched = torch.zeros(self.heads, self.N, dtype=torch.bool)
            for number, first in enumerate(self.branch.query.heads):
                for head in range(first, first + self.branch.query.group):
                    touched[head, self.rows(self.branch.query)[:, number].flatten()] = True
            sink = self.sink.expand(self.heads, self.N).masked_fill(~touched, -torch.inf)
        return yardstick(q, k, v, m, scale=self.branch.scale, sink=sink, grad_out=grad_out,
                         extras=extras)  # fmt: skip

    def results(self, *, into: bool = True) -> dict[str, Tensor]:
        """Of both passes. Memory that is no row of the branch is 7, and stays so."""
        q, k, v, grad_out = (x.to(DEVICE) for x in self.tensors)
        branch = on_device(self.branch)
        sink = None if self.sink is None else self.sink.to(DEVICE)
        out = torch.full_like(grad_out, 7.0)
        lse = out.new_full((self.batch, self.heads, self.N), 7.0, dtype=torch.float32)
        if into:
            TRITON.forward_branch(q, k, v, branch, sink=sink, into=TileOutput(out, lse))
        else:
            packed = TRITON.forward_branch(q, k, v, branch, sink=sink)
            rows = branch.query
            rows.write(out, rows.split(packed.out, self.batch))
            rows.write(lse.transpose(1, 2)[..., None],
                       rows.split(packed.lse.transpose(1, 2)[..., None], self.batch))  # fmt: skip
        there = self.touched()
        assert (lse.cpu()[~there] == 7).all()
        assert (out.cpu().transpose(1, 2)[~there] == 7).all()
        lse = lse.masked_fill(~there.to(DEVICE), -torch.inf)
        out = out.masked_fill(~there.to(DEVICE).transpose(1, 2)[..., None], 0.0)
        grads = self.gradients(branch, q, k, v, grad_out, out, lse)
        return {"out": out.cpu(), "lse": lse.cpu(), **grads}

    def touched(self) -> Tensor:
        there = torch.zeros(self.batch, self.heads, self.N, dtype=torch.bool)
        rows = self.rows(self.branch.query)
        for number, first in enumerate(self.branch.query.heads):
            there[:, first : first + self.branch.query.group, rows[:, number].flatten()] = True
        return there

    def gradients(self, branch: Branch, *given: Tensor) -> dict[str, Tensor]:
        """Written over what is there, and added once more to what then is there."""
        q, k, v, grad_out, out, lse = given
        delta = (grad_out.float() * out.float()).sum(-1).transpose(1, 2)
        final = lse.masked_fill(lse == -torch.inf, torch.inf)
        grads = Grads(*(torch.full(x.shape, 7.0, device=DEVICE) for x in (q, k, v)))
        for first in (True, False):
            TRITON.backward_branch(grad_out, q, k, v, final, delta, branch, grads=grads,
                                   first_query=first, first_key=first)  # fmt: skip
        there, keys = self.touched(), torch.zeros(self.M, self.kv_heads, dtype=torch.bool)
        rows = self.rows(self.branch.key)
        for number, head in enumerate(self.branch.key.heads):
            keys[rows[:, number].flatten(), head] = True
        halves = [x.cpu() / 2 for x in grads]
        for x, written in zip(halves, (there[0].T, keys, keys), strict=True):
            assert (x[:, ~written] == 3.5).all()
            x[:, ~written] = 0.0
        return dict(zip(("grad_query", "grad_key", "grad_value"), halves, strict=True))


def on_device(branch: Branch) -> Branch:
    def there(x: Any) -> Any:
        return x.to(DEVICE) if isinstance(x, Tensor) else x

    dropout = branch.dropout
    if dropout is not None:
        dropout = replace(dropout, query_positions=there(dropout.query_positions),
                          key_positions=there(dropout.key_positions))  # fmt: skip
    names = ("low", "high", "table", "which", "key_seen")
    moved = {name: there(getattr(branch, name)) for name in names}
    return replace(branch, dropout=dropout, **moved)


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
    return {"low": low // 2, "high": high}


def bitmaps(queries: int, keys: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(1)
    table = torch.rand(3, queries, keys, generator=draw) < 0.4
    table[:, 4] = False
    return {"table": table, "which": torch.tensor([2, 0])}


def padding(keys: int) -> Tensor:
    return torch.rand(2, keys, generator=torch.Generator().manual_seed(2)) < 0.7


def dropout(queries: int, keys: int) -> BranchDropout:
    return BranchDropout(0.3, SEED, 2 * torch.arange(queries), 3 * torch.arange(keys) + 1)


BRANCHES = {
    "dilated full": Case(dilated(MaskCase.FULL), 2),
    "dilated causal": Case(dilated(), 2),
    "dilated band": Case(dilated(MaskCase.BAND, left=2, right=1), 2),
    "dilated bitmap": Case(dilated(MaskCase.BITMAP, **bitmaps(9, 9)), 2),
    "dilated causal, padded keys": Case(dilated(key_seen=padding(60)), 2),
    "dilated causal, dropout": Case(dilated(dropout=dropout(60, 60)), 2),
    "listed full": Case(listed(), 2, M=80),
    "listed band": Case(listed(MaskCase.BAND, left=3, right=20), 2, M=80),
    "listed intervals": Case(listed(MaskCase.INTERVAL, **intervals(1)), 2, M=80),
    "listed intervals by head": Case(listed(MaskCase.INTERVAL, **intervals(2)), 2, M=80),
    "listed bitmap": Case(listed(MaskCase.BITMAP, **bitmaps(19, 37)), 2, M=80),
    "listed, padded keys": Case(listed(key_seen=padding(80)), 2, M=80),
    "listed intervals, dropout": Case(
        listed(MaskCase.INTERVAL, **intervals(2), dropout=dropout(60, 80)), 2, M=80
    ),
}
each_branch = pytest.mark.parametrize("case", BRANCHES.values(), ids=BRANCHES)


@each_branch
def test_a_branch_is_exact_and_nothing_else_is_touched(case: Case) -> None:
    assert_exact(case.results(), case.exact())


@pytest.mark.parametrize("name", ["dilated causal", "listed intervals by head"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_a_branch_is_exact_in_16_bits(name: str, dtype: torch.dtype) -> None:
    case = replace(BRANCHES[name], dtype=dtype)
    assert_exact(case.results(), case.exact())


@pytest.mark.parametrize("name", ["dilated causal", "listed bitmap"])
def test_new_outputs_are_by_tile(name: str) -> None:
    case = BRANCHES[name]
    assert_exact(case.results(into=False), case.exact())


@pytest.mark.parametrize("columns", [1, 60])
@pytest.mark.parametrize("name", ["dilated causal", "listed bitmap"])
def test_sinks_take_part_in_each_rows_normaliser(name: str, columns: int) -> None:
    sink = torch.randn(4, columns, generator=torch.Generator().manual_seed(4))
    sink[1] = -torch.inf
    case = replace(BRANCHES[name], sink=sink)
    assert_exact(case.results(), case.exact())


@pytest.mark.parametrize("tile_step", [0, 7, 20])
def test_gradients_of_keys_that_tiles_share_add_up(tile_step: int) -> None:
    query = Selection(Affine(0, 20, 0, 1), (0, 2), tiles=3, length=20, group=2)
    key = Selection(Affine(0, tile_step, 0, 1), (0, 1), tiles=3, length=20, overlap=True)
    case = Case(Branch(query, key, MaskCase.CAUSAL, 0.25), 2)
    assert_exact(case.results(), case.exact())


def test_gradients_of_listed_keys_that_tiles_share_add_up() -> None:
    given = listed()
    rows = np.random.default_rng(6).permutation(80)[:37]
    # One array of rows for all tiles and heads.
    key = Selection(Indexed(np.stack([rows[None], rows[None, ::-1]])), (0, 1), 2, 37, overlap=True)
    case = Case(replace(given, key=key), 2, M=80)
    assert_exact(case.results(), case.exact())


def test_groups_of_heads_may_read_one_key_head_in_rows_of_their_own() -> None:
    rows = Affine(0, 30, 1, 2)
    query = Selection(rows, (0, 1), tiles=2, length=13)
    key = Selection(rows, (0, 0), tiles=2, length=13)
    case = Case(Branch(query, key, MaskCase.CAUSAL, 0.25), 1)
    assert_exact(case.results(), case.exact())


def test_several_blocks_of_queries_and_keys_are_walked_through() -> None:
    """Blocks before, within and behind those that every query of a block sees."""
    query = Selection(Affine(0, 1, 0, 1), (0,), tiles=1, length=150)
    key = Selection(Affine(0, 1, 0, 1), (0,), tiles=1, length=170)
    row = torch.arange(150)
    ends = {"low": (row - 70).clamp(0)[None, None], "high": (row + 60).clamp(max=170)[None, None]}
    band = Branch(query, key, MaskCase.BAND, 0.25, left=70, right=59)
    same = Branch(query, key, MaskCase.INTERVAL, 0.25, **ends)
    cases = [Case(branch, 1, N=150, M=170, batch=1) for branch in (band, same)]
    results = [case.results() for case in cases]
    assert_exact(results[0], cases[0].exact())
    for name, x in results[0].items():
        assert torch.equal(x, results[1][name]), name


def test_a_mask_without_its_tensors_is_refused() -> None:
    x = torch.randn(2, 60, 4, 16, device=DEVICE)
    with pytest.raises(InvalidArgument, match="low: expected a tensor"):
        TRITON.forward_branch(x, x[:, :, :2], x[:, :, :2], dilated(MaskCase.INTERVAL))
