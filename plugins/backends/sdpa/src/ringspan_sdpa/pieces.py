"""An interval mask as a list of kernel calls.

A block of rows sees some keys with every row (the interior) and some with only part of its rows
(the edges). The interior needs no bias, so the kernel runs at its full speed there; only
the edges carry an additive bias, of bounded size. Whatever the lengths, no buffer is quadratic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float, Int
    from ringspan.contracts import Mask
    from torch import Tensor

__all__ = ["BIAS_ELEMENTS", "HIDDEN", "ROWS", "Block", "Piece", "blocks"]

ROWS = 256
"""Rows of a block. More rows mean fewer calls, but wider edges."""
BIAS_ELEMENTS = 1 << 21
"""Most elements of one bias (8 MiB in float32), unless a single key has more."""
HIDDEN = -1e30
"""The bias of a hidden key: finite, so that no row of a piece is all -inf, and beyond any score."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Keys that a block's rows see: all of them where `bias` is None."""

    keys: slice
    bias: Float[Tensor, "#B #H rows keys"] | None


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of some tiles, the rows that see no key at all, and the pieces for the others."""

    tiles: slice
    rows: slice
    empty: Bool[Tensor, "#B #H rows"]
    pieces: list[Piece]


@dataclass(frozen=True, slots=True)
class _Bounds:
    """`low` and `high` of one block, and the dtype that the kernel wants its bias in."""

    low: Int[Tensor, "#B #H rows"]
    high: Int[Tensor, "#B #H rows"]
    dtype: torch.dtype

    def bias(self, keys: slice) -> Float[Tensor, "#B #H rows keys"]:
        key = torch.arange(keys.start, keys.stop, device=self.low.device)
        hidden = (key < self.low[..., None]) | (key >= self.high[..., None])
        return torch.zeros(hidden.shape, dtype=self.dtype).masked_fill_(hidden, HIDDEN)

    def biased(self, start: int, stop: int) -> Iterator[Piece]:
        step = max(1, BIAS_ELEMENTS // self.low.numel())
        for first in range(start, stop, step):
            keys = slice(first, min(first + step, stop))
            yield Piece(keys, self.bias(keys))

    def pieces(self, empty: Bool[Tensor, "#B #H rows"]) -> Iterator[Piece]:
        if bool(empty.all()):
            return
        seen = ~empty
        start, stop = int(self.low[seen].min()), int(self.high[seen].max())
        inner_start, inner_stop = int(self.low.max()), int(self.high.min())
        # An interior shorter than a block's rows saves less than the extra call and merge cost.
        if bool(empty.any()) or inner_stop - inner_start < ROWS:
            yield from self.biased(start, stop)
            return
        yield from self.biased(start, inner_start)
        yield Piece(slice(inner_start, inner_stop), None)
        yield from self.biased(inner_stop, stop)


def blocks(mask: Mask, batch: int, length: int, keys: int, dtype: torch.dtype) -> Iterator[Block]:
    """Cuts `batch` tiles of `length` rows over `keys` keys into blocks with few hidden scores."""
    low, high = _aligned_bounds(mask, length, keys)
    shared_by_tiles = low.shape[0] == 1
    rows_of_block = min(ROWS, length)
    scores_of_tile = low.shape[1] * rows_of_block * keys
    step = batch if shared_by_tiles else max(1, BIAS_ELEMENTS // scores_of_tile)
    for first in range(0, batch, step):
        tiles = slice(first, min(first + step, batch))
        of_tiles = slice(None) if shared_by_tiles else tiles
        for start in range(0, length, rows_of_block):
            rows = slice(start, min(start + rows_of_block, length))
            bounds = _Bounds(low[of_tiles, :, rows], high[of_tiles, :, rows], dtype)
            empty = bounds.low >= bounds.high
            yield Block(tiles, rows, empty, list(bounds.pieces(empty)))


def _aligned_bounds(
    mask: Mask, length: int, keys: int
) -> tuple[Int[Tensor, "#B #H Lq"], Int[Tensor, "#B #H Lq"]]:
    """`low` and `high` with three dimensions of one shape, within `0 .. keys`."""
    assert mask.low is not None
    assert mask.high is not None
    shape = (mask.low + mask.high + mask.low.new_zeros(1, 1, length)).shape
    low, high = (bound.broadcast_to(shape).clamp(0, keys) for bound in (mask.low, mask.high))
    return low, high
