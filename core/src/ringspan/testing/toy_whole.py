"""A backend that takes work whole, a few lines for each of the contract's larger questions.

Beside the tiles of `toy` it takes bands, block-sparse work, ragged tiles and whole branches, and
it gathers and merges rows: by selecting rows, attending in float64, and putting rows back. What a
kernel does without moving a row, this does literally. The module is also a plugin, as `toy` is.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch

from ringspan.contracts import (
    ActiveBlocks,
    AttentionBackend,
    Capabilities,
    Dropout,
    Grads,
    Mask,
    MaskCase,
    Task,
    TileOutput,
    hookimpl,
)
from ringspan.testing.toy import Toy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from ringspan.contracts.branch import Branch, Piece, Placed
    from ringspan.contracts.masks import Lengths
    from ringspan.contracts.selection import Selection

__all__ = ["ToyWhole", "ringspan_attention_backends"]


class ToyWhole(Toy):
    """Everything that the contract of a backend has, in float64 and without haste."""

    name: ClassVar[str] = "toy-whole"
    capabilities: ClassVar[Capabilities] = replace(
        Toy.capabilities,
        devices=frozenset({"cpu"}),
        masks=frozenset(MaskCase),
        blocks=True,
        ragged=True,
        branches=True,
        tasks=frozenset(Task),
    )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Mask,
        scale: float,
        dropout: Dropout | None = None,
    ) -> TileOutput:
        """As `toy`, which reads bands, blocks and lengths pair by pair."""
        mask = _literal(mask, query, key)
        return super().forward(query, key, value, mask=mask, scale=scale, dropout=dropout)

    def gradients(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lse: Tensor,
        delta: Tensor,
        *,
        mask: Mask,
        scale: float,
        dropout: Dropout | None = None,
    ) -> Grads:
        """Likewise."""
        tensors = (grad_out, query, key, value, lse, delta)
        mask = _literal(mask, query, key)
        return super().gradients(*tensors, mask=mask, scale=scale, dropout=dropout)

    def forward_branch(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        branch: Branch,
        *,
        sink: Tensor | None = None,
        into: TileOutput | None = None,
    ) -> TileOutput:
        """Selects the rows, attends, takes the sink in, and writes the rows back."""
        batch, rows, heads, _ = query.shape
        # In float64 up to the end, so that the sink's share is not rounded twice.
        q = branch.query.tile_batch(query).double()
        k, v = (branch.key.tile_batch(x).double() for x in (key, value))
        mask, dropout = _tile_mask(branch, key), _tile_dropout(branch, query, key)
        out, lse = self.forward(q, k, v, mask=mask, scale=branch.scale, dropout=dropout)
        if sink is not None:
            logits = _rows_first(sink.double().expand(batch, heads, rows))
            total = torch.logaddexp(lse, _by_head(branch.query, logits))
            out = out * _share(lse, total).transpose(1, 2).unsqueeze(-1)
            lse = total
        out, lse = out.to(query.dtype), lse.to(_wide(query))
        if into is None:
            return TileOutput(out, lse)
        branch.query.write(into.out, branch.query.split(out, batch))
        branch.query.write(_rows_first(into.lse), branch.query.split(_rows_first(lse), batch))
        return into

    def backward_branch(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lse: Tensor,
        delta: Tensor,
        branch: Branch,
        *,
        grads: Grads,
        first_query: bool,
        first_key: bool,
    ) -> None:
        """Selects the rows, and adds their gradients where they lie."""
        dO, q = (branch.query.tile_batch(x) for x in (grad_out, query))
        k, v = (branch.key.tile_batch(x) for x in (key, value))
        final, products = (_by_head(branch.query, _rows_first(x)) for x in (lse, delta))
        mask, dropout = _tile_mask(branch, key), _tile_dropout(branch, query, key)
        found = self.gradients(
            *(dO, q, k, v, final, products), mask=mask, scale=branch.scale, dropout=dropout
        )
        for total, grad, rows, first in zip(
            grads,
            found,
            (branch.query, branch.key, branch.key),
            (first_query, first_key, first_key),
            strict=True,
        ):
            piece = rows.split(grad, len(query))
            if first:
                # Rows of several tiles are written once and added to afterwards.
                rows.write(total, torch.zeros_like(piece))
            rows.add(total, piece)

    def gather(self, *placed: Placed) -> tuple[Tensor, ...]:
        """One selection after the other."""
        return tuple(rows.tile_batch(tensor).contiguous() for rows, tensor in placed)

    def merge(
        self,
        pieces: Sequence[Piece],
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        sink: Tensor | None = None,
        base: Piece | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """First all log-sum-exps, then all shares of the output."""
        out = torch.zeros(shape, dtype=torch.float64)
        lse = _merged_lse(pieces, shape, sink, base)
        for rows, x, own in pieces:
            piece = rows.split(x.double(), shape[0])
            if own is not None:
                total = rows.view(_rows_first(lse))
                piece = piece * _share(rows.split(_rows_first(own.double()), shape[0]), total)
            rows.add(out, piece)
        if base is not None:
            share = 1.0 if base.lse is None else _rows_first(_share(base.lse.double(), lse))
            out += base.x.double() * share
        with_lse = any(piece.lse is not None for piece in (*pieces, *([base] if base else [])))
        wide = torch.promote_types(dtype, torch.float32)
        return out.to(dtype), lse.to(wide) if with_lse else None


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers `toy-whole`."""
    return [ToyWhole()]


def _literal(mask: Mask, query: Tensor, key: Tensor) -> Mask:
    """A mask of a case that `toy` knows, for the same pairs."""
    if mask.case is MaskCase.BAND:
        return mask.as_interval(query.shape[1], key.shape[1], query.device)
    if mask.blocks is not None:
        seen = torch.from_numpy(_seen_by_blocks(mask.blocks))
        return replace(mask, case=MaskCase.BITMAP, seen=seen, blocks=None)
    if mask.lengths is not None:
        seen = _seen_within_tiles(mask.lengths, causal=mask.case is MaskCase.CAUSAL)
        return replace(mask, case=MaskCase.BITMAP, seen=seen, lengths=None)
    return mask


def _seen_by_blocks(blocks: ActiveBlocks) -> np.ndarray:
    """bool `[rows, rows]`: nothing, everything or its bitmap for each pair of blocks."""
    lengths = np.diff(blocks.bounds)
    longest, count = int(lengths.max()), len(lengths)
    nothing, everything = len(blocks.bitmaps), len(blocks.bitmaps) + 1
    bitmaps = np.zeros((everything + 1, longest, longest), dtype=bool)
    if nothing:
        bitmaps[:nothing] = blocks.bitmaps[:, :longest, :longest]
    bitmaps[everything] = True
    number = np.full((count, count), nothing)
    query_block = np.repeat(np.arange(count), np.diff(blocks.indptr))
    number[query_block, blocks.indices] = np.where(blocks.bitmap < 0, everything, blocks.bitmap)
    block = np.repeat(np.arange(count), lengths)
    place = np.arange(len(block)) - blocks.bounds[block]
    seen: np.ndarray = bitmaps[number[block[:, None], block], place[:, None], place]
    return seen


def _seen_within_tiles(lengths: Lengths, *, causal: bool) -> Tensor:
    """bool `[query rows, key rows]`: rows of one tile, and of these the earlier keys."""
    places = []
    for bounds in (lengths.query_bounds.long(), lengths.key_bounds.long()):
        row = torch.arange(int(bounds[-1]))
        tile = torch.searchsorted(bounds, row, right=True) - 1
        places.append((tile, row - bounds[tile]))
    (query_tile, query), (key_tile, key) = places
    same = query_tile[:, None] == key_tile
    return same & (key <= query[:, None]) if causal else same


def _tile_mask(branch: Branch, key: Tensor) -> Mask:
    """The branch's mask for each tile of the batch."""
    batch, _, kv_heads, _ = key.shape
    mask = Mask(branch.case, left=branch.left, right=branch.right)
    if branch.low is not None and branch.high is not None:
        heads = branch.query.group if branch.low.shape[1] > 1 else 1
        low, high = (
            bound.repeat_interleave(heads, 1).repeat(batch, 1, 1)
            for bound in (branch.low, branch.high)
        )
        mask = replace(mask, low=low, high=high)
    if branch.table is not None and branch.which is not None:
        seen = branch.table[branch.which].unsqueeze(1).repeat(batch, 1, 1, 1)
        mask = replace(mask, seen=seen)
    if branch.key_seen is not None:
        seen = branch.key_seen[:, :, None, None].expand(-1, -1, kv_heads, -1)
        mask = replace(mask, key_seen=_by_head(branch.key, seen))
    return mask


def _tile_dropout(branch: Branch, query: Tensor, key: Tensor) -> Dropout | None:
    """The branch's dropout for each tile of the batch."""
    given, rows = branch.dropout, branch.query
    if given is None:
        return None
    batch = query.shape[0]
    of_queries, of_keys = (
        _by_head(selected, positions[None, :, None, None].expand(batch, -1, x.shape[2], -1))
        for selected, positions, x in (
            (rows, given.query_positions, query),
            (branch.key, given.key_positions, key),
        )
    )
    return Dropout(
        p=given.p,
        seed=given.seed,
        batch=torch.arange(batch).repeat_interleave(rows.tiles),
        heads=(torch.tensor(rows.heads)[:, None] + torch.arange(rows.group)).flatten(),
        query_positions=of_queries,
        key_positions=of_keys.repeat_interleave(rows.group, 1),
    )


def _merged_lse(
    pieces: Sequence[Piece],
    shape: tuple[int, int, int, int],
    sink: Tensor | None,
    base: Piece | None,
) -> Tensor:
    """The log-sum-exp of all that each row has, `[B, H, N]` in float64."""
    batch, rows, heads, _ = shape
    total = torch.full((batch, heads, rows), -torch.inf, dtype=torch.float64)
    for at, _, lse in pieces:
        if lse is not None:
            own = at.split(_rows_first(lse.double()), batch)
            at.write(_rows_first(total), torch.logaddexp(at.view(_rows_first(total)), own))
    for also in (sink, None if base is None else base.lse):
        total = total if also is None else torch.logaddexp(total, also.double())
    return total


def _share(lse: Tensor, total: Tensor) -> Tensor:
    """Of the total; 0 where there is none."""
    return (lse - total.masked_fill(total == -torch.inf, 0.0)).exp()


def _rows_first(x_BHN: Tensor) -> Tensor:
    """A number for each row as a tensor `[B, N, H, 1]`."""
    return x_BHN.transpose(1, 2).unsqueeze(-1)


def _by_head(selection: Selection, x_BNH1: Tensor) -> Tensor:
    """The selected numbers, `[B * T, K * G, L]`."""
    return selection.tile_batch(x_BNH1).squeeze(-1).transpose(1, 2)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
