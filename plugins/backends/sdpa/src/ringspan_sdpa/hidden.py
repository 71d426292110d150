"""What a mask hides, as a bias that the memory-efficient kernels can load.

They load 16 bytes at a time, so a row of the bias is longer in memory than it has keys. Sizes and
cuts follow from shapes alone: nothing here waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Mask, MaskCase

from ringspan_sdpa.bounds import aligned, part
from ringspan_sdpa.pieces import HIDDEN

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["BIAS_BYTES", "KEY_MULTIPLE", "Hidden", "Where"]

BIAS_BYTES = 1 << 26
"""Most bytes of one bias, unless the keys of a single row of a single head need more."""
KEY_MULTIPLE = 16
"""A row of the bias begins at a multiple of so many elements."""


@dataclass(frozen=True, slots=True)
class Where:
    """Some tiles, heads and rows: what one call computes."""

    tiles: slice
    heads: slice
    of_rows: slice

    @property
    def rows(self) -> tuple[slice, ...]:
        """In tensors `[B, Lq, H, D]`."""
        return self.tiles, self.of_rows, self.heads

    @property
    def keys(self) -> tuple[slice, ...]:
        """In tensors `[B, Lk, H, D]`: every key of these tiles and heads."""
        return self.tiles, slice(None), self.heads

    @property
    def lse(self) -> tuple[slice, ...]:
        """In tensors `[B, H, Lq]`."""
        return self.tiles, self.heads, self.of_rows


@dataclass(frozen=True, slots=True)
class Hidden:
    """The keys that a mask hides; those of a causal triangle are left to the kernel."""

    mask: Mask
    shape: tuple[int, int, int, int]
    """Batch, query heads, query rows, keys."""
    dtype: torch.dtype
    real: Bool[Tensor, "#B #H 1 Lk"] | None
    """`mask.key_seen` for each query head."""

    @classmethod
    def of(
        cls, mask: Mask, shape: tuple[int, int, int, int], group: int, dtype: torch.dtype
    ) -> Hidden:
        """Those of a mask over tiles of `shape`, whose heads share keys in groups."""
        if mask.key_seen is None:
            return cls(mask, shape, dtype, None)
        real = aligned(mask.key_seen, 3).expand(-1, -1, shape[-1])
        real = real if real.shape[1] == 1 else real.repeat_interleave(group, 1)
        return cls(mask, shape, dtype, real[:, :, None])

    def parts(self, largest_batch: int) -> Iterator[Where]:
        """Everything, cut so that no bias is larger than its bound."""
        left = BIAS_BYTES // (self._width * self.dtype.itemsize)
        steps = []
        for size, kinds in zip(self.shape[2::-1], self._kinds[::-1], strict=True):
            steps.append(size if kinds == 1 else max(1, min(size, left)))
            left //= 1 if kinds == 1 else steps[-1]
        rows, heads, tiles = steps
        for tile in _cut(self.shape[0], min(tiles, largest_batch)):
            for head in _cut(self.shape[1], heads):
                for row in _cut(self.shape[2], rows):
                    yield Where(tile, head, row)

    def bias(
        self, where: Where
    ) -> tuple[Float[Tensor, "b h rows Lk"], Bool[Tensor, "#b #h #rows"]]:
        """0 where a key is seen, and which rows see none."""
        seen, keys = self._seen(where), self.shape[-1]
        hidden = max(HIDDEN, torch.finfo(self.dtype).min)
        own = (*seen.shape[:3], self._width)
        bias = torch.full(own, hidden, dtype=self.dtype, device=seen.device)
        bias = bias[..., :keys].masked_fill_(seen, 0.0)
        sizes = (len(range(*cut.indices(cut.stop))) for cut in where.lse)
        return bias.expand(*sizes, keys), self._empty(seen)

    def _seen(self, where: Where) -> Bool[Tensor, "#b #h #rows Lk"]:
        real = None if self.real is None else part(self.real, *where.lse)
        if self.mask.case is MaskCase.INTERVAL:
            low, high = (part(x, *where.lse)[..., None] for x in self._bounds)
            key = torch.arange(self.shape[-1], device=low.device)
            seen = (key >= low) & (key < high)
        elif self.mask.seen is not None:
            seen = part(aligned(self.mask.seen, 4), *where.lse).expand(-1, -1, -1, self.shape[-1])
        else:
            assert real is not None
            return real
        return seen if real is None else seen & real

    def _empty(self, seen: Bool[Tensor, "#b #h #rows Lk"]) -> Bool[Tensor, "#b #h #rows"]:
        if self.mask.case is MaskCase.CAUSAL:
            return seen[:, :, 0].cumsum(-1) == 0
        return ~seen.any(-1)

    @property
    def _bounds(self) -> tuple[Tensor, Tensor]:
        assert self.mask.low is not None
        assert self.mask.high is not None
        return aligned(self.mask.low, 3), aligned(self.mask.high, 3)

    @property
    def _kinds(self) -> tuple[int, ...]:
        """How many tiles, heads and rows have a bias of their own."""
        shapes = [] if self.real is None else [self.real.shape[:3]]
        if self.mask.case is MaskCase.INTERVAL:
            shapes += [x.shape for x in self._bounds]
        elif self.mask.seen is not None:
            shapes.append(aligned(self.mask.seen, 4).shape[:3])
        return tuple(max(sizes) for sizes in zip(*shapes, strict=True))

    @property
    def _width(self) -> int:
        return math.ceil(self.shape[-1] / KEY_MULTIPLE) * KEY_MULTIPLE


def _cut(size: int, step: int) -> Iterator[slice]:
    for start in range(0, size, step):
        yield slice(start, min(start + step, size))
