"""Caches of patterns in which every head sees the same: all tokens so far, or the last few."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from ringspan.api import attention
from ringspan.decoding.buffers import Buffers
from ringspan.decoding.cache import Cache
from ringspan.decoding.step import Piece

if TYPE_CHECKING:
    from torch import Tensor

    from ringspan.contracts.pattern import Pattern
    from ringspan.decoding.sizes import Sizes

__all__ = ["DenseCache", "WindowCache"]


class DenseCache(Cache):
    """For `Dense`: every token stays visible, so every row is held.

    The buffers double when they are full.

    Example:
        >>> import torch, ringspan as rs
        >>> from ringspan.decoding import make_cache
        >>> cache = make_cache(rs.Dense(), batch=1, heads=2, head_dim=8)
        >>> q, k, v = torch.randn(3, 1, 1, 2, 8).unbind()
        >>> cache.attend(q, k, v).shape
        torch.Size([1, 1, 2, 8])
    """

    def __init__(self, pattern: Pattern, sizes: Sizes) -> None:
        super().__init__(pattern, sizes)
        self._heads = torch.arange(sizes.heads, device=sizes.device)
        self._buffers = Buffers(sizes, sizes.kv_heads)

    @property
    def rows_per_head(self) -> tuple[int, ...]:
        """For each key/value head, as many rows as tokens."""
        return (self.length,) * self.sizes.kv_heads

    @property
    def row_limit(self) -> None:
        """None: as many as tokens."""
        return

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, filled or not."""
        return self._buffers.nbytes

    def _keep(self, key: Tensor, value: Tensor) -> None:
        end = self.length + key.shape[1]
        self._buffers.reserve(end)
        self._buffers.key[:, :, self.length : end] = key.permute(2, 0, 1, 3)
        self._buffers.value[:, :, self.length : end] = value.permute(2, 0, 1, 3)

    def _seen(self) -> Iterator[Piece]:
        end = self.length + 1
        key, value = (x[:, :, :end] for x in (self._buffers.key, self._buffers.value))
        yield Piece(self._heads, key, value)

    def _attend_chunk(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, sink: Tensor | None
    ) -> Tensor:
        held = (x[:, :, : self.length] for x in (self._buffers.key, self._buffers.value))
        return _after(self, held, query, key, value, scale, sink)


class WindowCache(Cache):
    """For windows that look back `left` steps of `dilation` tokens: a ring of rows.

    A token sees itself and the tokens `dilation`, `2 * dilation` .. `left * dilation` before it.
    At most `(left + 1) * dilation` rows are held; until then the buffers double when they are full.

    Example:
        >>> import torch, ringspan as rs
        >>> from ringspan.decoding import make_cache
        >>> cache = make_cache(rs.Dense(window=(7, 0)), batch=1, heads=2, head_dim=8)
        >>> cache.row_limit
        (8, 8)
    """

    def __init__(self, pattern: Pattern, sizes: Sizes, *, left: int, dilation: int = 1) -> None:
        super().__init__(pattern, sizes)
        self._left, self._dilation = left, dilation
        self._heads = torch.arange(sizes.heads, device=sizes.device)
        self._capacity = (left + 1) * dilation
        self._buffers = Buffers(sizes, sizes.kv_heads, most=self._capacity)

    @property
    def rows_per_head(self) -> tuple[int, ...]:
        """For each key/value head, how many rows it holds now."""
        return (self._held,) * self.sizes.kv_heads

    @property
    def row_limit(self) -> tuple[int, ...]:
        """For each key/value head, the most rows it ever holds."""
        return (self._capacity,) * self.sizes.kv_heads

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, filled or not."""
        return self._buffers.nbytes

    @property
    def _held(self) -> int:
        return min(self.length, self._capacity)

    def _keep(self, key: Tensor, value: Tensor) -> None:
        # Of a long chunk only the last rows: the ring would write some slots twice.
        last = min(key.shape[1], self._capacity)
        end = self.length + key.shape[1]
        self._buffers.reserve(min(end, self._capacity))
        slots = self._slots(end - last, end)
        self._buffers.key[:, :, slots] = key[:, -last:].permute(2, 0, 1, 3)
        self._buffers.value[:, :, slots] = value[:, -last:].permute(2, 0, 1, 3)

    def _slots(self, start: int, end: int) -> Tensor:
        """Where the rows of tokens `start .. end - 1` lie."""
        return torch.arange(start, end, device=self.sizes.device) % self._capacity

    def _seen(self) -> Iterator[Piece]:
        # The capacity is a multiple of the dilation, so that a residue class has its own slots;
        # in which order they were filled does not matter to a sum.
        rows = min(self._left + 1, self.length // self._dilation + 1)
        slots = slice(self.length % self._dilation, None, self._dilation)
        key, value = (x[:, :, slots][:, :, :rows] for x in (self._buffers.key, self._buffers.value))
        yield Piece(self._heads, key, value)

    def _attend_chunk(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, sink: Tensor | None
    ) -> Tensor:
        slots = self._slots(self.length - self._held, self.length)
        held = (x[:, :, slots] for x in (self._buffers.key, self._buffers.value))
        return _after(self, held, query, key, value, scale, sink)


def _after(
    cache: Cache,
    held: Iterator[Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    sink: Tensor | None,
) -> Tensor:
    """Attention of a chunk over the rows held, `[Hkv, B, n, D]` in order, and itself.

    Rows that were dropped are out of every later token's sight, so the pattern may count from
    the first row held.
    """
    k, v = (
        torch.cat([rows.permute(1, 2, 0, 3), new], dim=1)
        for rows, new in zip(held, (key, value), strict=True)
    )
    before = k.shape[1] - key.shape[1]
    out = attention(
        query,
        k,
        v,
        pattern=cache.pattern,
        causal=True,
        scale=scale,
        sink=sink,
        query_positions=torch.arange(before, k.shape[1]) if before else None,
    )
    assert isinstance(out, torch.Tensor)
    return out
