"""Scores in chunks, so that no buffer is quadratic in the length, and the keys each chunk sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Mask, MaskCase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Int
    from torch import Tensor

__all__ = ["ROWS", "SCORES_PER_CHUNK", "Chunk", "chunks"]

SCORES_PER_CHUNK = 1 << 20
"""Most score elements held at once (4 MiB in float32), unless a single row has more."""
ROWS = 64
"""Most rows of a chunk where rows see different keys: more of them see more keys in common."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some rows of some tiles, and the run of keys outside of which they see none."""

    tiles: slice
    rows: slice
    keys: slice

    @property
    def length(self) -> int:
        """Number of rows."""
        return int(self.rows.stop - self.rows.start)


def chunks(mask: Mask, batch: int, heads: int, length: int, keys: int) -> Iterator[Chunk]:
    """Cuts the tiles into chunks of at most `SCORES_PER_CHUNK` scores.

    Rows of an interval mask that see no key may be left out.

    Example:
        >>> from ringspan.contracts import CAUSAL
        >>> [chunk.keys for chunk in chunks(CAUSAL, 1, 1, 100, 100)]
        [slice(0, 64, None), slice(0, 100, None)]
    """
    first, last = _spans(mask, batch, heads, length, keys)
    rows = length if mask.case in (MaskCase.FULL, MaskCase.BITMAP) else min(length, ROWS)
    step = max(1, SCORES_PER_CHUNK // max(1, heads * rows * keys))
    for start in range(0, batch, step):
        tiles = slice(start, min(start + step, batch))
        low, high = (x.expand(batch, -1)[tiles] for x in (first, last))
        yield from _rows(tiles, low.amin(0), high.amax(0), rows, heads)


def _rows(
    tiles: slice, first: Int[Tensor, " Lq"], last: Int[Tensor, " Lq"], rows: int, heads: int
) -> Iterator[Chunk]:
    """Cuts some tiles into chunks of at most `rows` rows."""
    width = heads * (tiles.stop - tiles.start)
    start, length = 0, len(first)
    while start < length:
        # As many rows as there may be of the first one's length, then fewer if others are longer.
        alone = width * _count(_chunk(tiles, start, start + 1, first, last).keys)
        some = min(rows, length - start, max(1, SCORES_PER_CHUNK // max(1, alone)))
        chunk = _chunk(tiles, start, start + some, first, last)
        while chunk.length > 1 and width * chunk.length * _count(chunk.keys) > SCORES_PER_CHUNK:
            chunk = _chunk(tiles, start, start + chunk.length // 2, first, last)
        if _count(chunk.keys) > 0:
            yield chunk
        start = chunk.rows.stop


def _chunk(tiles: slice, start: int, stop: int, first: Tensor, last: Tensor) -> Chunk:
    keys = slice(int(first[start:stop].min()), int(last[start:stop].max()))
    return Chunk(tiles, slice(start, stop), keys)


def _count(keys: slice) -> int:
    return int(keys.stop - keys.start)


def _spans(
    mask: Mask, batch: int, heads: int, length: int, keys: int
) -> tuple[Int[Tensor, "#B Lq"], Int[Tensor, "#B Lq"]]:
    """The first key that a row of any head sees, and the one after the last; on the host."""
    if mask.case is MaskCase.CAUSAL:
        return torch.zeros(1, length, dtype=torch.int64), torch.arange(1, length + 1)[None]
    if mask.case is MaskCase.BAND:
        row = torch.arange(length)[None]
        return (row - mask.left).clamp(0, keys), (row + mask.right + 1).clamp(0, keys)
    if mask.case is not MaskCase.INTERVAL:
        return torch.zeros(1, length, dtype=torch.int64), torch.full((1, length), keys)
    assert mask.low is not None
    assert mask.high is not None
    every_row = (batch, heads, length)
    low, high = (x.broadcast_to(every_row).clamp(0, keys) for x in (mask.low, mask.high))
    empty = low >= high
    first = low.masked_fill(empty, keys).amin(1)
    last = high.masked_fill(empty, 0).amax(1)
    # One copy for both: it waits for the device.
    both = torch.stack((first, last)).cpu()
    return both[0], both[1]
