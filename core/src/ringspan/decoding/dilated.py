"""The bounded cache of a dilated pattern (LongNet, arXiv 2307.02486).

In positions' order a token sees, in each branch, only earlier tokens of its own segment on its
head's offset. So a branch keeps, per offset, one segment's rows, and writes over them when the
segment turns: at most `ceil(w / r)` rows, whatever the length so far.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np
import torch

from ringspan.api import attention
from ringspan.contracts.pattern import Domain
from ringspan.contracts.tokens import Sequence
from ringspan.decoding.buffers import Buffers
from ringspan.decoding.cache import Cache
from ringspan.decoding.merge import Merging
from ringspan.decoding.step import Piece
from ringspan.patterns import Dilated
from ringspan.patterns.head_offsets import heads_by_offset

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    from ringspan.decoding.sizes import Sizes
    from ringspan.patterns.head_offsets import HeadOffsets

__all__ = ["DilatedCache"]


@dataclass(frozen=True, slots=True, eq=False)
class _Lanes:
    """What one branch keeps at one offset: a lane per key/value head that is read there.

    Nothing here says how full it is: that follows from the position.
    """

    segment_length: int
    rate: int
    offset: int
    heads: Tensor
    """int64 `[L * m]`: the query heads that read lane 0, then those of lane 1 .."""
    kv_heads: Tensor
    """int64 `[L]`: the key/value head of each lane."""
    capacity: int
    """Rows of a whole segment."""
    buffers: Buffers
    """A lane has room for so many at most."""

    def rows_before(self, position: int) -> int:
        """How many rows of the segment of `position` come before it."""
        return max(0, -((self.offset - position % self.segment_length) // self.rate))

    def holds(self, position: int) -> bool:
        """Whether the token at `position` is on this offset."""
        return position % self.segment_length % self.rate == self.offset

    def keep(self, key: Tensor, value: Tensor, start: int) -> None:
        """Writes those of the tokens from `start` on that are in the last one's segment."""
        last = start + key.shape[1] - 1
        segment = last - last % self.segment_length
        first = max(start, segment)
        first += (self.offset - (first - segment)) % self.rate
        if first > last:
            return
        slot = (first - segment) // self.rate
        end = slot + (last - first) // self.rate + 1
        self.buffers.reserve(end)
        for buffer, x in ((self.buffers.key, key), (self.buffers.value, value)):
            rows = x[:, first - start :: self.rate].index_select(2, self.kv_heads)
            buffer[:, :, slot:end] = rows.permute(2, 0, 1, 3)

    def piece(self, rows: int) -> Piece:
        """The first `rows` rows."""
        key, value = (x[:, :, :rows] for x in (self.buffers.key, self.buffers.value))
        return Piece(self.heads, key, value)

    def rows_of(self, start: int, tokens: int) -> Tensor:
        """Which of the `tokens` tokens from `start` on are on this offset, counted from 0."""
        place = np.arange(start, start + tokens) % self.segment_length
        on_offset = np.flatnonzero(place % self.rate == self.offset)
        return torch.from_numpy(on_offset).to(self.heads.device)

    def attend(
        self, rows: Tensor, query: Tensor, key: Tensor, value: Tensor, start: int, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Out and lse of those rows of a chunk, over what is held and the chunk itself.

        Along one offset a branch is plain attention in segments of `capacity` rows.
        """
        before = self.rows_before(start)
        buffers = self.buffers.key, self.buffers.value
        held = (x[:, :, :before].permute(1, 2, 0, 3) for x in buffers)
        new = (x[:, rows].index_select(2, self.kv_heads) for x in (key, value))
        k, v = (torch.cat(pair, dim=1) for pair in zip(held, new, strict=True))
        out, lse = attention(
            query[:, rows].index_select(2, self.heads),
            k,
            v,
            pattern=Dilated((self.capacity,), (1,)),
            causal=True,
            scale=scale,
            query_positions=torch.arange(before, before + len(rows)),
            return_lse=True,
        )
        return out, lse


class DilatedCache(Cache):
    """For `Dilated`, holding at most `sum ceil(w / r)` rows per key/value head.

    With `head_offsets="query"` or explicit offsets the query heads of one key/value head may
    stand on several offsets of a branch; it then holds `ceil(w / r)` rows for each of those.

    A step reads views of buffers that are made once: its cost depends on how full the segments
    are, never on the length so far.

    Example:
        >>> import torch, ringspan as rs
        >>> from ringspan.decoding import make_cache
        >>> pattern = rs.Dilated((4, 16), (1, 4))
        >>> cache = make_cache(pattern, batch=1, heads=2, head_dim=8)
        >>> for _ in range(1000):
        ...     q, k, v = torch.randn(3, 1, 1, 2, 8).unbind()
        ...     out = cache.attend(q, k, v)
        >>> cache.length, cache.row_limit
        (1000, (8, 8))
    """

    pattern: Dilated

    def __init__(self, pattern: Dilated, sizes: Sizes) -> None:
        super().__init__(pattern, sizes)
        self._lanes = tuple(_all_lanes(pattern, sizes))

    @property
    def rows_per_head(self) -> tuple[int, ...]:
        """For each key/value head, how many rows a later token can still see."""
        return self._count(lanes.rows_before(self.length) for lanes in self._lanes)

    @property
    def row_limit(self) -> tuple[int, ...]:
        """For each key/value head, the most rows it ever holds."""
        return self._count(lanes.capacity for lanes in self._lanes)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, filled or not."""
        return sum(lanes.buffers.nbytes for lanes in self._lanes)

    def _count(self, rows: Iterable[int]) -> tuple[int, ...]:
        total = [0] * self.sizes.kv_heads
        for lanes, count in zip(self._lanes, rows, strict=True):
            for head in lanes.kv_heads.tolist():
                total[head] += count
        return tuple(total)

    def _keep(self, key: Tensor, value: Tensor) -> None:
        for lanes in self._lanes:
            lanes.keep(key, value, self.length)

    def _seen(self) -> Iterator[Piece]:
        for lanes in self._lanes:
            if lanes.holds(self.length):
                yield lanes.piece(lanes.rows_before(self.length) + 1)

    def _attend_chunk(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, sink: Tensor | None
    ) -> Tensor:
        if self.length == 0:
            whole = attention(
                query, key, value, pattern=self.pattern, causal=True, scale=scale, sink=sink
            )
            assert isinstance(whole, torch.Tensor)
            return whole
        merging = Merging(query, self.sizes)
        for lanes in self._lanes:
            rows = lanes.rows_of(self.length, query.shape[1])
            if len(rows):
                out, lse = lanes.attend(rows, query, key, value, self.length, scale)
                merging.add(rows, lanes.heads, out, lse)
        return merging.finish(sink)


def _all_lanes(pattern: Dilated, sizes: Sizes) -> Iterator[_Lanes]:
    """The lanes of every branch and offset in use."""
    # Which heads keep an offset does not depend on the number of tokens.
    domain = Domain(Sequence(1), sizes.heads, sizes.kv_heads, _no_order, causal=True)
    pattern.check(domain)
    rule = cast("HeadOffsets", pattern.head_offsets)
    branches = zip(pattern.segment_lengths, pattern.dilation_rates, strict=True)
    for branch, (length, rate) in enumerate(branches):
        for offset, heads in heads_by_offset(rule, domain, branch, rate).items():
            rows = -((offset - length) // rate)
            for kv_heads, alike in _lanes_alike(heads, sizes) if rows > 0 else ():
                yield _Lanes(
                    length,
                    rate,
                    offset,
                    torch.tensor(alike, device=sizes.device),
                    torch.tensor(kv_heads, device=sizes.device),
                    rows,
                    Buffers(sizes, len(kv_heads), most=rows),
                )


def _lanes_alike(heads: tuple[int, ...], sizes: Sizes) -> Iterator[tuple[list[int], list[int]]]:
    """Key/value heads that as many of these query heads read, and those query heads in order."""
    readers: dict[int, list[int]] = {}
    for head in heads:
        readers.setdefault(head // sizes.group, []).append(head)
    for count in sorted({len(group) for group in readers.values()}):
        alike = {kv: group for kv, group in readers.items() if len(group) == count}
        yield list(alike), [head for group in alike.values() for head in group]


def _no_order(name: str, tokens: object) -> npt.NDArray[np.int64]:
    raise AssertionError(f"offsets of heads asked for the ordering {name!r}")
