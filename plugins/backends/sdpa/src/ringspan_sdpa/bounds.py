"""The keys that the rows of each tile see: an interval, and which keys within it are real."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Mask, MaskCase

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Int, Shaped
    from torch import Tensor

    Keys = Bool[Tensor, "#B #H Lk"]
    PerRow = Int[Tensor, "#B #H #Lq"]

__all__ = ["Bounds", "aligned", "part", "real_keys"]


@dataclass(frozen=True, slots=True)
class Bounds:
    """Row `i` sees those of the keys `low[i] .. high[i] - 1` that are real.

    Where all tiles, heads or rows have the same, the tensors have one entry for all.
    """

    low: PerRow
    high: PerRow
    real: Keys | None
    """None: every key is."""

    @classmethod
    def of(cls, mask: Mask, real: Keys | None, length: int, keys: int) -> Bounds:
        """Those of any mask but a bitmap; the first and the last key of a row are real."""
        low, high = _bounds(mask, length, keys)
        if real is not None:
            low, high = _tightened(low, high, real)
        shape = _common(low, high)
        return cls(low.expand(shape), high.expand(shape), real)._once()

    def tiles(self, tiles: slice) -> Bounds:
        """Those of some tiles."""
        real = None if self.real is None else part(self.real, tiles)
        return Bounds(part(self.low, tiles), part(self.high, tiles), real)._once()

    def rows(self, rows: slice) -> Bounds:
        """Those of some rows."""
        every = slice(None)
        low, high = (part(x, every, every, rows) for x in (self.low, self.high))
        return Bounds(low, high, self.real)

    @property
    def kinds(self) -> tuple[int, int, int]:
        """How many tiles, heads and rows have something of their own."""
        tiles, heads, rows = self.low.shape
        if self.real is not None:
            tiles, heads = max(tiles, self.real.shape[0]), max(heads, self.real.shape[1])
        return tiles, heads, rows

    def stretches(self, batch: int, least: int) -> Iterator[slice]:
        """Consecutive tiles with equal bounds, at least so many; fewer of them lie together."""
        changes = torch.zeros(batch - 1, dtype=torch.bool)
        for x in (self.low, self.high, self.real):
            if x is not None and len(x) > 1:
                changes |= (x[1:] != x[:-1]).flatten(1).any(1)
        start = 0
        for first, last in pairwise([0, *(changes.nonzero().flatten() + 1).tolist(), batch]):
            if last - first >= least:
                if start < first:
                    yield slice(start, first)
                yield slice(first, last)
                start = last
        if start < batch:
            yield slice(start, batch)

    def seen(self, keys: slice) -> Bool[Tensor, "#B #H #Lq keys"]:
        """Which of some keys each row sees."""
        key = torch.arange(keys.start, keys.stop)
        seen = (key >= self.low[..., None]) & (key < self.high[..., None])
        return seen if self.real is None else seen & self.real[:, :, None, keys]

    def _once(self) -> Bounds:
        low, high = _once(self.low, self.high)
        return Bounds(low, high, None if self.real is None else _once(self.real)[0])


def real_keys(mask: Mask, heads: int, kv_heads: int, keys: int) -> Keys | None:
    """`mask.key_seen` for each query head; None where every key is real."""
    if mask.key_seen is None or bool(mask.key_seen.all()):
        return None
    real = aligned(mask.key_seen, 3).expand(-1, -1, keys)
    return real if real.shape[1] == 1 else real.repeat_interleave(heads // kv_heads, 1)


def aligned(x: Shaped[Tensor, "*axes"], dims: int) -> Shaped[Tensor, "*#aligned"]:
    """`x` with `dims` axes."""
    return x[(None,) * (dims - x.dim())]


def part(x: Shaped[Tensor, "*#axes"], *slices: slice) -> Shaped[Tensor, "*#part"]:
    """The slices of those axes along which `x` has several entries."""
    return x[tuple(s if n > 1 else slice(None) for n, s in zip(x.shape, slices, strict=False))]


def _once(*tensors: Tensor) -> list[Tensor]:
    """The tensors with one entry along the axes of tiles and heads where all entries are equal."""
    for axis in (0, 1):
        firsts = [x.narrow(axis, 0, 1) for x in tensors]
        if all(bool((x == first).all()) for x, first in zip(tensors, firsts, strict=True)):
            tensors = tuple(firsts)
    return list(tensors)


def _bounds(mask: Mask, length: int, keys: int) -> tuple[PerRow, PerRow]:
    if mask.case is MaskCase.INTERVAL:
        assert mask.low is not None
        assert mask.high is not None
        low, high = (aligned(x, 3).long().clamp(0, keys) for x in (mask.low, mask.high))
        return low, high
    start = torch.zeros(1, 1, 1, dtype=torch.int64)
    if mask.case is MaskCase.CAUSAL:
        return start, torch.arange(1, length + 1)[None, None]
    return start, start + keys


def _tightened(low: PerRow, high: PerRow, real: Keys) -> tuple[PerRow, PerRow]:
    """The same intervals without the padded keys at their ends."""
    keys = real.shape[-1]
    key = torch.arange(keys)
    first = torch.where(real, key, keys).flip(-1).cummin(-1).values.flip(-1)
    first = torch.nn.functional.pad(first, (0, 1), value=keys)  # the first real key from j on
    last = torch.where(real, key + 1, 0).cummax(-1).values
    last = torch.nn.functional.pad(last, (1, 0))  # the one after the last real key before j
    return _taken(first, low), _taken(last, high)


def _taken(table: Int[Tensor, "#B #H keys"], index: PerRow) -> PerRow:
    tiles, heads, _ = _common(table, index)
    return table.expand(tiles, heads, -1).gather(-1, index.expand(tiles, heads, -1))


def _common(x: Shaped[Tensor, "*#axes"], y: Shaped[Tensor, "*#axes"]) -> tuple[int, ...]:
    """The shape of what depends on both."""
    return tuple(max(sizes) for sizes in zip(x.shape, y.shape, strict=True))
