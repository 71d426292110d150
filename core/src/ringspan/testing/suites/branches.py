"""Branches as data, with their random tensors and their exact results."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ringspan.contracts import Grads, Mask, MaskCase, TileOutput, kept
from ringspan.contracts.branch import Branch, BranchDropout
from ringspan.testing.accuracy import Yardstick, yardstick
from ringspan.testing.formula import Extras
from ringspan.testing.suites.devices import torch_device
from ringspan.testing.suites.masks import banded, drawn_mask, drawn_padding, visible
from ringspan.testing.suites.rows import covered, heads_of, listed, place
from ringspan.testing.suites.tiles import NAMES, Tile, strided, wide

if TYPE_CHECKING:
    from torch import Tensor

    from ringspan.contracts import AttentionBackend, DeviceInfo

__all__ = ["BranchOperands", "Branches", "Part"]


@dataclass(frozen=True)
class Part:
    """One branch: how its rows lie, and what they see."""

    layout: str = "dilated"
    """One of `ringspan.testing.suites.rows.LAYOUTS`."""
    heads: str = "all"
    """One of `ringspan.testing.suites.rows.HEADS`."""
    tiles: int = 2
    query_length: int = 7
    key_length: int = 5
    """Causal tiles have as many keys as queries, whatever this says."""
    mask: MaskCase = MaskCase.FULL
    bounds_per_head: bool = True

    @property
    def lengths(self) -> tuple[int, int]:
        """Queries and keys of each tile."""
        square = self.mask is MaskCase.CAUSAL
        return self.query_length, self.query_length if square else self.key_length


@dataclass(frozen=True)
class Branches:
    """Branches of the same tensors, one after the other; a failing one is printed whole."""

    parts: tuple[Part, ...] = (Part(),)
    batch: int = 2
    kv_heads: int = 3
    group_size: int = 1
    head_dim: int = 16
    value_head_dim: int = 16
    dtype: str = "float32"
    strides: str = "contiguous"
    key_padding: bool = False
    dropout_p: float = 0.0
    sink: str = ""
    """`"head"`: a logit for each head; `"row"`: for each head and row; empty: none."""
    scale: float = 0.25
    seed: int = 0

    def tiles(self) -> Iterator[Tile]:
        """What selection is asked about each part."""
        for part in self.parts:
            heads = heads_of(part.heads, self.kv_heads, self.group_size)
            yield Tile(
                head_dim=self.head_dim,
                value_head_dim=self.value_head_dim,
                group_size=heads.group,
                mask=part.mask,
                dtype=self.dtype,
                key_padding=self.key_padding,
                dropout_p=self.dropout_p,
            )

    def operands(self, device: DeviceInfo) -> BranchOperands:
        """Its tensors on `device`: normal, the same ones for the same branches."""
        where = torch_device(device)
        draw = torch.Generator().manual_seed(self.seed)
        placed = [
            place(
                part.layout,
                heads_of(part.heads, self.kv_heads, self.group_size),
                *(part.tiles, part.lengths, draw),
            )
            for part in self.parts
        ]
        N, M = (max(needs[side] for _, _, needs in placed) for side in (0, 1))
        heads = self.kv_heads * self.group_size

        def normal(rows: int, heads: int, width: int) -> Tensor:
            x = torch.randn((self.batch, rows, heads, width), generator=draw, dtype=torch.float64)
            return strided(x.to(where, getattr(torch, self.dtype)), self.strides)

        query, key = normal(N, heads, self.head_dim), normal(M, self.kv_heads, self.head_dim)
        value = normal(M, self.kv_heads, self.value_head_dim)
        key_seen = drawn_padding((self.batch, 1, M), draw)[:, 0].to(where)
        return BranchOperands(
            *(query, key, value, normal(N, heads, self.value_head_dim)),
            branches=tuple(
                replace(
                    _masked(part, Branch(rows, keys, part.mask, self.scale), draw, where),
                    key_seen=key_seen if self.key_padding else None,
                    dropout=self._dropout(N, M, where) if self.dropout_p else None,
                )
                for part, (rows, keys, _) in zip(self.parts, placed, strict=True)
            ),
            sink=self._sink(N, draw, where) if self.sink else None,
        )

    def _sink(self, rows: int, draw: torch.Generator, device: torch.device) -> Tensor:
        """Logits, and one that is -inf: no sink."""
        shape = (self.kv_heads * self.group_size, rows if self.sink == "row" else 1)
        sink = torch.randn(shape, generator=draw, dtype=torch.float64)
        sink[0, -1] = -torch.inf
        return sink.to(device, wide(getattr(torch, self.dtype)))

    def _dropout(self, queries: int, keys: int, device: torch.device) -> BranchDropout:
        return BranchDropout(
            p=self.dropout_p,
            seed=2**40 + self.seed,
            query_positions=3 * torch.arange(queries, device=device) + 1,
            key_positions=2 * torch.arange(keys, device=device),
        )


@dataclass(frozen=True, eq=False)
class BranchOperands:
    """What a backend is given for some branches, and what it has to answer."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    branches: tuple[Branch, ...]
    sink: Tensor | None
    """`[H, 1]` or `[H, N]`."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Query, key, value and upstream gradient."""
        return self.query, self.key, self.value, self.grad_out

    def contiguous(self) -> BranchOperands:
        """As the engine hands tensors to a backend that takes no strides."""
        query, key, value, grad_out = (x.contiguous() for x in self.tensors)
        return replace(self, query=query, key=key, value=value, grad_out=grad_out)

    def exact(self) -> Yardstick:
        """What all results have to be, computed on the CPU from the rows' definition."""
        tensors = (x.cpu().contiguous() for x in (self.query, self.key, self.value))
        sink = None if self.sink is None else self.sink.cpu().squeeze(-1)
        dropout, extras = self.branches[0].dropout, Extras()
        if dropout is not None:
            extras = Extras(keep=self._kept(dropout), dropout_p=dropout.p)
        return yardstick(
            *(*tensors, self._multiplicity()),
            scale=self.branches[0].scale,
            sink=sink,
            grad_out=self.grad_out.cpu().contiguous(),
            extras=extras,
        )

    def results(self, backend: AttentionBackend, exact: Yardstick) -> dict[str, Tensor]:
        """By name, on the CPU; rows of no branch, which must be untouched, are as in `exact`."""
        out, lse = self._forward(backend, exact)
        found = {"out": out, "lse": lse}
        if not backend.capabilities.backward:
            return found
        return found | dict(zip(NAMES[2:], self._backward(backend, out, lse), strict=True))

    def forward(
        self, backend: AttentionBackend, branch: Branch, into: TileOutput | None = None
    ) -> TileOutput:
        """One branch as the backend is asked for it."""
        tensors = (self.query, self.key, self.value)
        known = _known(branch, backend, self.query.device)
        return backend.forward_branch(*tensors, known, sink=self.sink, into=into)

    def empty(self) -> TileOutput:
        """Where all rows are written, full of NaN."""
        batch, rows, heads, width = self.grad_out.shape
        out = self.query.new_full((batch, rows, heads, width), torch.nan)
        return TileOutput(out, out.new_full((batch, heads, rows), torch.nan, dtype=wide(out.dtype)))

    def _forward(self, backend: AttentionBackend, exact: Yardstick) -> tuple[Tensor, Tensor]:
        """All branches merged in float64."""
        out, total = self._written(backend, self.branches[0])
        for branch in self.branches[1:]:
            out, total = _merged((out, total), self._written(backend, branch))
        there = self._rows()
        out = torch.where(there[..., None], out, exact.formula.out)
        return out, torch.where(there.T, total, exact.formula.lse)

    def _written(self, backend: AttentionBackend, branch: Branch) -> tuple[Tensor, Tensor]:
        """One branch in float64 on the CPU, empty where it has no rows."""
        into = self.empty()
        self.forward(backend, branch, into)
        out, lse = into.out.cpu().double(), into.lse.cpu().double()
        there = covered(branch.query, *out.shape[1:3])
        assert out[:, ~there].isnan().all(), "wrote an output row of no tile"
        assert lse.transpose(1, 2)[:, ~there].isnan().all(), "wrote an lse of no tile"
        out = out.masked_fill(~there[..., None], 0.0)
        return out, lse.masked_fill(~there.T, -torch.inf)

    def _backward(self, backend: AttentionBackend, out: Tensor, lse: Tensor) -> list[Tensor]:
        """All branches one after the other; only the first one finds nothing written."""
        like, place = wide(self.query.dtype), self.query.device
        final = lse.masked_fill(lse == -torch.inf, torch.inf).to(place, like)
        rounded = out.to(place, self.query.dtype)
        delta = torch.einsum("bihe,bihe->bhi", self.grad_out.to(like), rounded.to(like))
        grads = self._new_grads()
        for number, branch in enumerate(self.branches):
            backend.backward_branch(
                *(self.grad_out, self.query, self.key, self.value, final, delta),
                _known(branch, backend, place),
                grads=grads,
                first_query=number == 0,
                first_key=number == 0 and not branch.key.overlap,
            )
            if number == 0:
                self._settle(grads, branch)
        return [grad.cpu() for grad in grads]

    def _new_grads(self) -> Grads:
        """Full of NaN where the first branch finds nothing; narrow where a row gets one piece."""
        overlap, one = self.branches[0].key.overlap, len(self.branches) == 1

        def new(x: Tensor, fill: float, narrow: bool) -> Tensor:
            dtype = x.dtype if narrow else wide(x.dtype)
            return torch.full(x.shape, fill, dtype=dtype, device=x.device)

        fill = 0.0 if overlap else torch.nan
        key, value = (new(x, fill, one and not overlap) for x in (self.key, self.value))
        return Grads(new(self.query, torch.nan, one), key, value)

    def _settle(self, grads: Grads, branch: Branch) -> None:
        """Rows that the first branch has not, and must not have, touched get nothing from it."""
        for name, grad, rows in zip(
            Grads._fields, grads, (branch.query, branch.key, branch.key), strict=True
        ):
            there = covered(rows, *grad.shape[1:3]).to(grad.device)
            untouched = grad[:, ~there]
            fresh = name == "query" or not branch.key.overlap
            assert (untouched.isnan() if fresh else untouched == 0).all(), (
                f"wrote a gradient of {name} in a row of no tile"
            )
            grad[:, ~there] = 0.0

    def _rows(self) -> Tensor:
        """bool `[N, H]`: the rows of any branch."""
        shape = self.query.shape[1:3]
        return torch.stack([covered(branch.query, *shape) for branch in self.branches]).any(0)

    def _multiplicity(self) -> Tensor:
        """int64 `[B, H, N, M]`: how often a row sees a key, tile by tile."""
        (batch, N, heads, _), M = self.query.shape, self.key.shape[1]
        total = torch.zeros(heads, N, M, dtype=torch.int64)
        for branch in self.branches:
            for head, rows, keys, seen in _pairs(branch):
                total[head].index_put_((rows[:, None], keys), seen.long(), accumulate=True)
        key_seen = self.branches[0].key_seen
        if key_seen is None:
            return total.expand(batch, -1, -1, -1)
        return total * key_seen.cpu()[:, None, None, :]

    def _kept(self, dropout: BranchDropout) -> Tensor:
        batch, _, heads, _ = self.query.shape
        return kept(
            dropout.p,
            dropout.seed,
            torch.arange(batch)[:, None],
            torch.arange(heads),
            dropout.query_positions.cpu()[None, None],
            dropout.key_positions.cpu()[None, None],
        )


def _pairs(branch: Branch) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
    """Of each tile and query head: its rows, its keys, and which of them see which."""
    query, key = listed(branch.query), listed(branch.key)
    tiles, groups, length = query.shape
    for tile in range(tiles):
        for index in range(groups):
            seen = visible(_mask_of(branch, tile, index), length, key.shape[-1])
            seen = seen.expand(length, key.shape[-1])
            for member in range(branch.query.group):
                head = branch.query.heads[index] + member
                yield head, query[tile, index], key[tile, index], seen


def _mask_of(branch: Branch, tile: int, index: int) -> Mask:
    """What a group of heads sees in a tile."""
    mask = Mask(branch.case, left=branch.left, right=branch.right)
    if branch.low is not None and branch.high is not None:
        own = index if branch.low.shape[1] > 1 else 0
        return replace(mask, low=branch.low[tile, own], high=branch.high[tile, own])
    if branch.table is not None and branch.which is not None:
        return replace(mask, seen=branch.table[branch.which[tile]])
    return mask


def _masked(part: Part, branch: Branch, draw: torch.Generator, device: torch.device) -> Branch:
    """The branch with the bounds or bitmaps of its case."""
    queries, keys = part.lengths
    if part.mask is MaskCase.BAND:
        wider = torch.randint(4, (2,), generator=draw).tolist()
        band = banded(queries, keys, (wider[0], wider[1]))
        return replace(branch, left=band.left, right=band.right)
    if part.mask is MaskCase.INTERVAL:
        heads = len(branch.query.heads) if part.bounds_per_head else 1
        mask = drawn_mask(part.mask, (part.tiles, heads, queries), keys, draw)
        assert mask.low is not None
        assert mask.high is not None
        return replace(branch, low=mask.low.to(device), high=mask.high.to(device))
    if part.mask is MaskCase.BITMAP:
        mask = drawn_mask(part.mask, (2, queries), keys, draw)
        assert mask.seen is not None
        which = torch.arange(part.tiles, device=device) % 2
        return replace(branch, table=mask.seen.to(device), which=which)
    return branch


def _known(branch: Branch, backend: AttentionBackend, device: torch.device) -> Branch:
    """The branch with its band said as an interval, for kernels that know no bands."""
    if branch.case is not MaskCase.BAND or branch.case in backend.capabilities.masks:
        return branch
    rows, keys = branch.query, branch.key
    band = Mask(branch.case, left=branch.left, right=branch.right)
    mask = band.as_interval(rows.length, keys.length, device)
    assert mask.low is not None
    assert mask.high is not None
    low, high = (bound.expand(rows.tiles, 1, -1) for bound in (mask.low, mask.high))
    return replace(branch, case=mask.case, low=low, high=high, left=0, right=0)


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two outputs with their log-sum-exps as one."""
    total = torch.logaddexp(one[1], other[1])
    finite = total.masked_fill(total == -torch.inf, 0.0)
    shares = ((lse - finite).exp().transpose(1, 2)[..., None] for _, lse in (one, other))
    return one[0] * next(shares) + other[0] * next(shares), total
