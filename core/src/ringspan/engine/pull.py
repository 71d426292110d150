"""The sums of `ringspan.engine.merge`, pulled: pieces wait until a row is put together at once.

Where a kernel merges, no wide sum is in memory: it reads the pieces of a row, keeps their sum in
registers, and writes the row once, rounded. Pieces that would need more memory than a few results
are merged into a wide one on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ringspan.contracts.branch import Piece
from ringspan.contracts.selection import Selection
from ringspan.engine.merge import accumulation_dtype

__all__ = ["Merge", "PulledOutput", "PulledTotal"]

_RESULTS_WAITING = 3
"""Pieces wait until together they are so many times as large as the result."""

Shape = tuple[int, int, int, int]
Merge = Callable[..., tuple[Tensor, Tensor | None]]
"""As `AttentionBackend.merge`."""


class _Waiting:
    """Pieces of one result, and what was merged of them before."""

    def __init__(self, merge: Merge, shape: Shape, wide: torch.dtype) -> None:
        self._merge, self._wide = merge, wide
        self.shape = shape
        self.pieces: list[Piece] = []
        self.base: Piece | None = None

    def add(self, piece: Piece) -> None:
        self.pieces.append(piece)
        if sum(each.x.numel() for each in self.pieces) > _RESULTS_WAITING * math.prod(self.shape):
            self.fold()

    def fold(self) -> None:
        """Merges what waits into one wide piece."""
        if self.pieces:
            rows = self.pieces[0].rows
            self.base = Piece(rows, *self.merged(self._wide))

    def merged(
        self, dtype: torch.dtype, sinks: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """All of it as one tensor; nothing waits afterwards."""
        pieces, base, self.pieces, self.base = self.pieces, self.base, [], None
        return self._merge(pieces, self.shape, dtype=dtype, sink=sinks, base=base)


class PulledOutput:
    """As `Accumulator`."""

    into = None

    def __init__(self, merge: Merge, shape: Shape, like: Tensor) -> None:
        self._like, self._wide = like, accumulation_dtype(like.dtype)
        self._waiting = _Waiting(merge, shape, self._wide)

    def put(self, rows: Selection, out: Tensor, lse: Tensor, *, first: bool) -> None:
        """Takes a piece: `out` `[B * T, L, H, Dv]` and `lse` `[B * T, H, L]` of some rows."""
        self._waiting.add(Piece(rows, out, lse))

    def finish(self, dtype: torch.dtype, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
        """As `Accumulator.finish`."""
        if not self._waiting.pieces and self._waiting.base is None:
            return self._nothing(dtype, sinks)
        out, lse = self._waiting.merged(dtype, sinks)
        assert lse is not None
        return out, lse

    def _nothing(self, dtype: torch.dtype, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
        batch, rows, heads, _ = self._waiting.shape
        lse = self._like.new_full((batch, heads, rows), -torch.inf, dtype=self._wide)
        out = self._like.new_zeros(self._waiting.shape, dtype=dtype)
        return out, lse if sinks is None else torch.maximum(lse, sinks)


class PulledTotal:
    """As `Total`."""

    fresh = False

    def __init__(self, merge: Merge, like: Tensor) -> None:
        batch, rows, heads, width = like.shape
        self._like, self.dtype = like, accumulation_dtype(like.dtype)
        self._waiting = _Waiting(merge, (batch, rows, heads, width), self.dtype)

    @property
    def tensor(self) -> Tensor:
        """What has arrived so far, to be added to in place."""
        self._waiting.fold()
        base = self._waiting.base
        if base is None:
            zeros = torch.zeros_like(self._like, dtype=self.dtype, memory_format=_IN_ORDER)
            base = self._waiting.base = Piece(_NOWHERE, zeros)
        return base.x

    def put(self, rows: Selection, piece: Tensor, *, first: bool) -> None:
        """Takes `[B * T, L, H, D]`."""
        if rows.overlap:
            rows.add(self.tensor, rows.split(piece, len(self._like)))
        else:
            self._waiting.add(Piece(rows, piece))

    def finish(self, dtype: torch.dtype) -> Tensor:
        """The sum in `dtype`, contiguous."""
        if not self._waiting.pieces:
            return self.tensor.to(dtype)
        return self._waiting.merged(dtype)[0]


_IN_ORDER = torch.contiguous_format
_NOWHERE = Selection(rows=None, heads=(), tiles=0, length=0)  # type: ignore[arg-type]
