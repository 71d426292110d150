"""A mask as a list of kernel calls.

A block of rows sees some keys with every row (the interior) and some with only part of its rows
(the edges). The interior needs no bias, so the kernel runs at its full speed there; only
the edges, padded keys and bitmaps carry an additive bias, of bounded size. Whatever the lengths,
no buffer is quadratic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringspan.contracts import Mask, MaskCase
from ringspan.contracts.adapters.arguments import lse_dtype

from ringspan_sdpa.bounds import Bounds, aligned, part, real_keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["BIAS_ELEMENTS", "HIDDEN", "INTERIOR", "ROWS", "Block", "Piece", "blocks"]

ROWS = 192
"""Rows of a block: as few as the kernel works on at its full speed, so that edges are narrow."""
INTERIOR = 512
"""Fewest keys of an interior: with fewer, a bias costs less than the extra call and merge."""
WORTH_A_CALL = 1 << 16
"""Tiles with the same bounds and at least so many scores have calls of their own."""
BIAS_ELEMENTS = 1 << 21
"""Most elements of one bias (8 MiB in float32), unless a single row or key has more."""
HIDDEN = -1e30
"""The bias of a hidden key: finite, so that no row of a piece is all -inf, and beyond any score."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Keys that a block's rows see: all of them where `bias` is None."""

    keys: slice
    bias: Float[Tensor, "#B #H #rows keys"] | None


@dataclass(frozen=True, slots=True)
class Block:
    """Some rows of some tiles, and the keys that they see."""

    tiles: slice
    rows: slice
    pieces: Iterable[Piece]
    """Made one at a time, as their biases are large; `()` where no row sees any key."""
    empty: Bool[Tensor, "#B #H #rows"] | None
    """Which rows see no key at all; None where every row sees one."""

    @classmethod
    def of(
        cls, tiles: slice, rows: slice, pieces: Iterable[Piece], empty: Bool[Tensor, "#B #H #rows"]
    ) -> Block:
        """Without a tensor for what is the same for all rows."""
        if bool(empty.all()):
            return cls(tiles, rows, (), None)
        return cls(tiles, rows, pieces, empty if bool(empty.any()) else None)


def blocks(
    mask: Mask, query: Float[Tensor, "B H Lq D"], key: Float[Tensor, "B Hkv Lk D"]
) -> Iterator[Block]:
    """Cuts tiles into blocks with few hidden scores; every row is in one block."""
    (heads, length), (kv_heads, keys) = query.shape[1:3], key.shape[1:3]
    real = real_keys(mask, heads, kv_heads, keys)
    if mask.case is MaskCase.BITMAP:
        return _bitmap_blocks(mask, real, query, keys)
    return _interval_blocks(Bounds.of(mask, real, length, keys), query, keys)


def _bitmap_blocks(
    mask: Mask, real: Bool[Tensor, "#B #H Lk"] | None, query: Float[Tensor, "B H Lq D"], keys: int
) -> Iterator[Block]:
    assert mask.seen is not None
    batch, _, length, _ = query.shape
    seen, every = aligned(mask.seen, 4), slice(None)
    kinds, of_heads = seen.shape[:2]
    if real is not None:
        kinds, of_heads = max(kinds, real.shape[0]), max(of_heads, real.shape[1])
    rows_of_block = min(length, max(1, BIAS_ELEMENTS // (of_heads * keys)))
    elements_of_tile = of_heads * rows_of_block * keys
    step = batch if kinds == 1 else max(1, BIAS_ELEMENTS // elements_of_tile)
    for tiles in _cut(slice(0, batch), step):
        for rows in _cut(slice(0, length), rows_of_block):
            here = part(seen, tiles, every, rows).expand(-1, -1, -1, keys)
            if real is not None:
                here = here & part(real, tiles)[:, :, None]
            bias = _bias(here, query)
            yield Block.of(tiles, rows, [Piece(slice(0, keys), bias)], bias.amax(-1) < 0)


def _interval_blocks(
    bounds: Bounds, query: Float[Tensor, "B H Lq D"], keys: int
) -> Iterator[Block]:
    batch, heads, length, _ = query.shape
    rows_of_block = length if bounds.low.shape[2] == 1 else min(ROWS, length)
    least = WORTH_A_CALL // (heads * rows_of_block * keys) + 1
    for stretch in bounds.stretches(batch, least):
        kinds, of_heads, _ = bounds.tiles(stretch).kinds
        elements_of_tile = of_heads * rows_of_block * keys
        step = batch if kinds == 1 else max(1, BIAS_ELEMENTS // elements_of_tile)
        for tiles in _cut(stretch, step):
            of_tiles = bounds.tiles(tiles)
            for rows in _cut(slice(0, length), rows_of_block):
                of_rows = of_tiles.rows(rows)
                empty = of_rows.low >= of_rows.high
                yield Block.of(tiles, rows, _pieces(of_rows, query), empty)


def _pieces(bounds: Bounds, like: Tensor) -> Iterator[Piece]:
    low, high = bounds.low, bounds.high
    some = low < high
    start, stop = int(low[some].min()), int(high[some].max())
    inner = slice(int(low.max()), int(high.min()))
    # A row that sees none of these keys may see others, and must then see no interior.
    if not bool(some.all()) or (inner != slice(start, stop) and _count(inner) < INTERIOR):
        inner = slice(stop, stop)
    step = max(1, BIAS_ELEMENTS // math.prod(bounds.kinds))
    for keys in _cut(slice(start, inner.start), step):
        yield Piece(keys, _bias(bounds.seen(keys), like))
    if _count(inner) > 0 and (bounds.real is None or bool(bounds.real[..., inner].all())):
        yield Piece(inner, None)
    elif bounds.real is not None:
        for keys in _cut(inner, step):
            yield Piece(keys, _bias(bounds.real[:, :, None, keys], like))
    for keys in _cut(slice(inner.stop, stop), step):
        yield Piece(keys, _bias(bounds.seen(keys), like))


def _bias(
    seen: Bool[Tensor, "#B #H #rows keys"], like: Tensor
) -> Float[Tensor, "#B #H #rows keys"]:
    """0 where a key is seen. The kernel takes float64 for float64 inputs, otherwise float32."""
    return (~seen).to(lse_dtype(like.dtype)).mul_(HIDDEN)


def _cut(whole: slice, step: int) -> Iterator[slice]:
    for start in range(whole.start, whole.stop, step):
        yield slice(start, min(start + step, whole.stop))


def _count(keys: slice) -> int:
    return int(keys.stop - keys.start)
