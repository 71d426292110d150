"""The mask and the dropout of one launch, as kernels take them: by tile, or by row in place."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ringspan.contracts.branch import Branch, BranchDropout
from ringspan.contracts.dropout import Dropout
from ringspan.contracts.masks import Mask
from ringspan.contracts.selection import Selection, head_numbers, key_rows, query_rows
from ringspan.contracts.work import Indexed, Tiles

__all__ = ["Drawn", "Seed", "branch_of", "tile_dropout", "tile_mask"]


@dataclass(frozen=True, slots=True)
class Seed:
    """Dropout of one call."""

    p: float
    seed: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """Dropout in one step: the seed, and the positions by which it draws."""

    seed: Seed
    query_positions: Indexed
    """Of each query row."""
    key_positions: Indexed
    """Of each key row at hand."""


def tile_mask(tiles: Tiles, batch: int, key_seen: Tensor | None, device: torch.device) -> Mask:
    """The mask of `[B * T, ..]` tiles; `key_seen` is `[B, rows, heads]` of the keys at hand."""
    low, high = (
        # [T, K or 1, L] -> [B * T, K * G or 1, L]
        None if bound is None else _spread(bound.on(device), tiles.group).repeat(batch, 1, 1)
        for bound in (tiles.low, tiles.high)
    )
    seen = None
    if tiles.seen is not None:
        seen = tiles.seen.on(device).unsqueeze(1).repeat(batch, 1, 1, 1)
    if key_seen is not None:
        key_seen = _by_head(key_rows(tiles), key_seen.unsqueeze(-1))
    return Mask(tiles.mask, low, high, seen, key_seen, tiles.blocks, tiles.left, tiles.right)


def tile_dropout(tiles: Tiles, batch: int, drawn: Drawn, query: Tensor, key: Tensor) -> Dropout:
    """The dropout of `[B * T, ..]` tiles, whose rows lie in tensors like `query` and `key`."""
    device = query.device
    at_query, at_key = query_rows(tiles), key_rows(tiles)
    of_keys = _by_head(at_key, _per_head(drawn.key_positions, key))
    of_queries = _by_head(at_query, _per_head(drawn.query_positions, query))
    return Dropout(
        p=drawn.seed.p,
        seed=drawn.seed.seed,
        batch=torch.arange(batch, device=device).repeat_interleave(tiles.count),
        heads=head_numbers(tiles.query_heads, tiles.group, device).flatten(),
        query_positions=of_queries.repeat(batch, 1, 1),
        key_positions=of_keys.repeat_interleave(tiles.group, dim=1).repeat(batch, 1, 1),
    )


def branch_of(
    tiles: Tiles, scale: float, key_seen: Tensor | None, drawn: Drawn | None, device: torch.device
) -> Branch:
    """Tiles in place; `key_seen` is `[B, rows]` of the keys at hand."""
    low, high = (None if bound is None else bound.on(device) for bound in (tiles.low, tiles.high))
    table, which = (None, None) if tiles.seen is None else tiles.seen.parts_on(device)
    dropout = None
    if drawn is not None:
        positions = (x.on(device) for x in (drawn.query_positions, drawn.key_positions))
        dropout = BranchDropout(drawn.seed.p, drawn.seed.seed, *positions)
    return Branch(
        query_rows(tiles),
        key_rows(tiles),
        tiles.mask,
        scale,
        low,
        high,
        tiles.left,
        tiles.right,
        table,
        which,
        key_seen,
        dropout,
    )


def _per_head(positions: Indexed, like: Tensor) -> Tensor:
    """Positions `[rows]` as `[1, rows, heads, 1]` for the heads of `like`."""
    rows = positions.on(like.device)[None, :, None, None]
    return rows.expand(-1, -1, like.shape[2], -1)


def _by_head(selection: Selection, x: Tensor) -> Tensor:
    """Selected entries of `x` `[B, N, H, 1]` as `[B * T, heads, L]`."""
    return selection.tile_batch(x).squeeze(-1).transpose(1, 2)


def _spread(bound: Tensor, group: int) -> Tensor:
    return bound if bound.shape[1] == 1 else bound.repeat_interleave(group, dim=1)
