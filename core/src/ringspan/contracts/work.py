"""Work as data: batches of tiles, and where their rows lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from ringspan.contracts.masks import Lengths, MaskCase

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    from ringspan.contracts.blocks import ActiveBlocks

    Ints = npt.NDArray[np.int64]

__all__ = ["Affine", "Bitmaps", "Indexed", "Ragged", "Rows", "Tiles", "Work", "equal_groups"]


@dataclass(frozen=True, slots=True)
class Affine:
    """Row `l` of head `k` in tile `t` is `start + t * tile_step + k * head_step + l * step`.

    Such rows are a strided view of a tensor: no copy.
    """

    start: int
    tile_step: int
    head_step: int
    step: int

    def some(self, tiles: slice) -> Affine:
        """The rows of some tiles."""
        return replace(self, start=self.start + tiles.start * self.tile_step)


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Indexed:
    """Row `l` of head `k` in tile `t` is `rows[t, k, l]`: read by a gather."""

    rows: Ints
    _tensors: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device) -> torch.Tensor:
        """`rows` as a tensor on `device`, copied there once."""
        return _on(self.rows, device, self._tensors)

    def some(self, tiles: slice) -> Indexed:
        """The rows of some tiles."""
        return Indexed(self.rows[tiles])


@dataclass(frozen=True, slots=True, eq=False)
class Bitmaps:
    """Query `l` of tile `t` sees key `m` where `table[which[t], l, m]`; tiles share bitmaps."""

    table: npt.NDArray[np.bool_]
    which: Ints
    _tensors: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False)
    _numbers: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device) -> torch.Tensor:
        """The bitmap of each tile, bool `[T, Lq, Lk]`."""
        table, which = self.parts_on(device)
        return table[which]

    def parts_on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """`table` and `which` as tensors on `device`, copied there once."""
        return _on(self.table, device, self._tensors), _on(self.which, device, self._numbers)

    def some(self, tiles: slice) -> Bitmaps:
        """The bitmaps of some tiles."""
        return Bitmaps(self.table, self.which[tiles], self._tensors)


def _on(
    array: npt.NDArray[Any], device: torch.device, tensors: dict[torch.device, torch.Tensor]
) -> torch.Tensor:
    if device not in tensors:
        import torch

        # Host data that others hold too are read-only, which torch cannot say of a tensor.
        own = array if array.flags.writeable else array.copy()
        tensors[device] = torch.from_numpy(own).to(device)
    return tensors[device]


Rows = Affine | Indexed


@dataclass(frozen=True, eq=False)
class Tiles:
    """A batch of equal dense problems: `count` tiles for each of some heads.

    Query rows lie in this rank's query; key rows in the keys at hand in the step (this rank's
    own, or the rows just received). No query row of a head occurs twice.
    """

    count: int
    query_length: int
    key_length: int
    query: Rows
    query_heads: tuple[int, ...]
    """Query heads, each the first of `group` heads in a row that share a key/value head."""
    key: Rows
    key_heads: tuple[int, ...]
    """For each of `query_heads`, the head of the keys at hand that it reads."""
    group: int
    mask: MaskCase
    low: Indexed | None = None
    """For `INTERVAL`: query `l` of tile `t` sees keys from `low[t, k, l]`, `k` a head or 0 .."""
    high: Indexed | None = None
    """.. to below `high[t, k, l]`."""
    seen: Bitmaps | None = None
    """For `BITMAP`."""
    left: int = 0
    """For `BAND`."""
    right: int = 0
    blocks: ActiveBlocks | None = None
    """With `FULL`: block-sparse work whole, as one tile."""
    keys_overlap: bool = False
    """Whether a key row may occur in several tiles."""
    forward_first: bool = False
    """No earlier work of the forward pass writes any of these query rows."""
    backward_first: bool = False
    """The same for the gradient of the query, in the order of the backward pass."""
    key_first: bool = False
    """The same for the gradients of key and value."""

    @property
    def tiles(self) -> tuple[Tiles, ...]:
        """Itself, as batches of equal tiles."""
        return (self,)

    @cached_property
    def area(self) -> int:
        """Query-key pairs that the mask leaves, over all tiles and query heads."""
        heads = len(self.query_heads) * self.group
        if self.blocks is not None:
            return heads * self.blocks.area
        if self.seen is not None:
            sums = self.seen.table.sum(axis=(1, 2))
            return heads * int(sums[self.seen.which].sum())
        if self.low is not None and self.high is not None:
            pairs = np.maximum(self.high.rows - self.low.rows, 0)
            return heads * int(pairs.sum()) // int(pairs.shape[1])
        return self.count * heads * self._pairs

    @property
    def _pairs(self) -> int:
        """Of one tile and head, where all are alike."""
        if self.mask is MaskCase.CAUSAL:
            return self.query_length * (self.query_length + 1) // 2
        if self.mask is MaskCase.BAND:
            row = np.arange(self.query_length)
            last = np.minimum(row + self.right + 1, self.key_length)
            return int((last - np.maximum(row - self.left, 0)).sum())
        return self.query_length * self.key_length

    @cached_property
    def _chunks(self) -> dict[int, tuple[Tiles, ...]]:
        return {}

    def chunks(self, tiles: int) -> tuple[Tiles, ...]:
        """The same work, at most so many tiles at a time."""
        if tiles >= self.count:
            return (self,)
        if tiles not in self._chunks:
            self._chunks[tiles] = tuple(
                self._some(slice(first, min(first + tiles, self.count)))
                for first in range(0, self.count, tiles)
            )
        return self._chunks[tiles]

    def _some(self, tiles: slice) -> Tiles:
        return replace(
            self,
            count=tiles.stop - tiles.start,
            query=self.query.some(tiles),
            key=self.key.some(tiles),
            low=None if self.low is None else self.low.some(tiles),
            high=None if self.high is None else self.high.some(tiles),
            seen=None if self.seen is None else self.seen.some(tiles),
        )

    @property
    def summary(self) -> str:
        """One line for a reader: `8 tiles x 4 heads, 2048 x 2048, causal, views`."""
        views = isinstance(self.query, Affine) and isinstance(self.key, Affine)
        return (
            f"{self.count} tiles x {len(self.query_heads) * self.group} heads, "
            f"{self.query_length} x {self.key_length}, {self.mask}, "
            f"{'views' if views else 'gathered'}"
        )


@dataclass(frozen=True, eq=False)
class Ragged:
    """Dense problems of many lengths: packed documents, whose rows are runs of this rank's.

    Tile `t` has the queries `query_start[t] + step * (0 .. query_length[t])`, the keys likewise;
    heads are those of `Tiles`.
    """

    query_start: Ints
    query_length: Ints
    key_start: Ints
    key_length: Ints
    step: int
    query_heads: tuple[int, ...]
    key_heads: tuple[int, ...]
    group: int
    mask: MaskCase
    """`FULL` or `CAUSAL`."""
    forward_first: bool = False
    backward_first: bool = False
    key_first: bool = False

    @property
    def count(self) -> int:
        """Number of tiles."""
        return len(self.query_start)

    @property
    def area(self) -> int:
        """Query-key pairs that the mask leaves, over all tiles and query heads."""
        if self.mask is MaskCase.CAUSAL:
            pairs = self.query_length * (self.query_length + 1) // 2
        else:
            pairs = self.query_length * self.key_length
        return int(pairs.sum()) * len(self.query_heads) * self.group

    @cached_property
    def tiles(self) -> tuple[Tiles, ...]:
        """The same work as batches of equal tiles, for kernels that take no others."""
        return tuple(self._batches())

    @cached_property
    def in_line(self) -> Tiles:
        """The rows of all tiles one after the other, as if they were one tile."""
        return Tiles(
            count=1,
            query_length=int(self.query_length.sum()),
            key_length=int(self.key_length.sum()),
            query=_in_line(self.query_start, self.query_length, self.step, len(self.query_heads)),
            query_heads=self.query_heads,
            key=_in_line(self.key_start, self.key_length, self.step, len(self.key_heads)),
            key_heads=self.key_heads,
            group=self.group,
            mask=self.mask,
            forward_first=self.forward_first,
            backward_first=self.backward_first,
            key_first=self.key_first,
        )

    @cached_property
    def _lengths(self) -> dict[tuple[torch.device, int], Lengths]:
        return {}

    def lengths_on(self, device: torch.device, batch: int) -> Lengths:
        """Where the tiles of all sequences of a batch begin, copied to `device` once."""
        if (device, batch) not in self._lengths:
            import torch

            query, key = (
                torch.from_numpy(np.append(0, np.tile(length, batch).cumsum()))
                for length in (self.query_length, self.key_length)
            )
            self._lengths[device, batch] = Lengths(
                query.to(device, torch.int32),
                key.to(device, torch.int32),
                int(self.query_length.max()),
                int(self.key_length.max()),
            )
        return self._lengths[device, batch]

    def _batches(self) -> Iterator[Tiles]:
        for chosen in equal_groups(self.query_length, self.key_length):
            query_length = int(self.query_length[chosen[0]])
            key_length = int(self.key_length[chosen[0]])
            yield Tiles(
                count=len(chosen),
                query_length=query_length,
                key_length=key_length,
                query=_run_rows(self.query_start[chosen], self.step, query_length),
                query_heads=self.query_heads,
                key=_run_rows(self.key_start[chosen], self.step, key_length),
                key_heads=self.key_heads,
                group=self.group,
                mask=self.mask,
                forward_first=self.forward_first,
                backward_first=self.backward_first,
                key_first=self.key_first,
            )

    @property
    def summary(self) -> str:
        """One line for a reader: `1000 ragged tiles x 4 heads, up to 2048 x 2048, causal`."""
        return (
            f"{self.count} ragged tiles x {len(self.query_heads) * self.group} heads, up to "
            f"{self.query_length.max()} x {self.key_length.max()}, {self.mask}"
        )


def equal_groups(*keys: Ints) -> Iterator[Ints]:
    """The indices at which all keys are equal, together and ascending."""
    if not len(keys[0]):
        return
    order = np.lexsort(keys)
    changes = np.logical_or.reduce([np.diff(key[order]) != 0 for key in keys])
    yield from np.split(order, np.flatnonzero(changes) + 1)


def _in_line(start: Ints, length: Ints, step: int, heads: int) -> Rows:
    """The rows of runs one after the other: a view where each goes on where the last ended."""
    if (np.diff(start) == step * length[:-1]).all():
        return Affine(int(start[0]), 0, 0, step)
    within = np.arange(length.sum()) - np.repeat(length.cumsum() - length, length)
    rows = np.repeat(start, length) + step * within
    return Indexed(np.broadcast_to(rows, (1, heads, len(rows))))


def _run_rows(start: Ints, step: int, length: int) -> Rows:
    """Rows that begin at `start`: a view where the tiles are evenly spaced."""
    gaps = np.diff(start)
    if len(gaps) == 0 or (gaps[0] > 0 and (gaps == gaps[0]).all()):
        return Affine(int(start[0]), int(gaps[0]) if len(gaps) else 0, 0, step)
    return Indexed((start[:, None] + step * np.arange(length))[:, None, :])


Work = Tiles | Ragged
