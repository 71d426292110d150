"""The rows of a batch of tiles inside a larger tensor: a view where they are affine, else a gather.

Letters of shapes: B batch, T tiles, L rows of a tile, K groups of heads, G heads of a group (one,
in keys), D head dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ringspan.contracts.work import Affine, Indexed, Rows, Tiles

__all__ = ["Selection", "head_numbers", "in_cache", "key_rows", "query_rows"]

_CACHED_ELEMENTS = 2**19


@dataclass(frozen=True, slots=True)
class Selection:
    """Some rows of some heads of tensors `[B, N, H, D]`, as `[B, T, L, K, G, D]`."""

    rows: Rows
    heads: tuple[int, ...]
    """Each the first of `group` heads in a row."""
    tiles: int
    length: int
    group: int = 1
    overlap: bool = False
    """Whether a row may occur in several tiles."""

    def view(self, x_BNHD: Tensor) -> Tensor:
        """The rows: a view of `x` where they are affine, else a copy."""
        if isinstance(self.rows, Affine):
            return self._strided(x_BNHD, self.rows)
        return x_BNHD[self._index(x_BNHD, self.rows)]

    def tile_batch(self, x_BNHD: Tensor) -> Tensor:
        """The rows as a backend takes them, `[B * T, L, K * G, D]`; copied only where strides
        cannot say it."""
        x = self.view(x_BNHD)
        return x.reshape(-1, self.length, len(self.heads) * self.group, x.shape[-1])

    def is_view(self, x_BNHD: Tensor) -> bool:
        """Whether `tile_batch` is a view: strides can say it."""
        if not isinstance(self.rows, Affine):
            return False
        (batch, row, head, _), rows = x_BNHD.stride(), self.rows
        between = self.heads[1] - self.heads[0] if len(self.heads) > 1 else 0
        return (
            self.tiles == 1 or len(x_BNHD) == 1 or batch == self.tiles * rows.tile_step * row
        ) and (
            len(self.heads) == 1
            or self.group == 1
            or between * head + rows.head_step * row == self.group * head
        )

    def is_all_of(self, shape: tuple[int, ...]) -> bool:
        """Whether `tile_batch` of a tensor `[B, N, H, D]` of this shape is all of it, in order."""
        rows, (_, tokens, heads, _) = self.rows, shape
        return (
            isinstance(rows, Affine)
            and (rows.start, rows.head_step) == (0, 0)
            and (rows.step == 1 or self.length == 1)
            and (rows.tile_step == self.length or self.tiles == 1)
            and self.tiles * self.length == tokens
            and self.heads == tuple(range(0, heads, self.group))
            and not self.overlap
        )

    def split(self, tiles: Tensor, batch: int) -> Tensor:
        """The inverse of `tile_batch`'s shape: `[B * T, L, K * G, D]` as `[B, T, L, K, G, D]`."""
        return tiles.reshape(
            batch, self.tiles, self.length, len(self.heads), self.group, tiles.shape[-1]
        )

    def write(self, x_BNHD: Tensor, piece: Tensor) -> None:
        """`x[rows] = piece`, in place; `piece` is shaped as `view`."""
        if isinstance(self.rows, Affine):
            self._strided(x_BNHD, self.rows).copy_(piece)
        else:
            x_BNHD[self._index(x_BNHD, self.rows)] = piece.to(x_BNHD.dtype)

    def add(self, x_BNHD: Tensor, piece: Tensor) -> None:
        """`x[rows] += piece`, in place."""
        if self.overlap:
            self._add_overlapping(x_BNHD, piece)
            return
        view = self.view(x_BNHD)
        for total, part in in_cache(view, piece):
            total += part
        self.settle(x_BNHD, view)

    def _add_overlapping(self, x_BNHD: Tensor, piece: Tensor) -> None:
        if isinstance(self.rows, Affine):
            # Tiles so far apart have no rows in common.
            reach = (self.length - 1) * self.rows.step + 1
            apart = self.tiles if not self.rows.tile_step else -(-reach // self.rows.tile_step)
            view = self._strided(x_BNHD, self.rows)
            for first in range(min(apart, self.tiles)):
                view[:, first::apart] += piece[:, first::apart]
            return
        _, rows, heads = self._index(x_BNHD, self.rows)
        flat = (rows * x_BNHD.shape[2] + heads).flatten()
        # As rows times heads one dimension is left to add along: x is contiguous.
        x_BNHD.flatten(1, 2).index_add_(
            1, flat, piece.reshape(len(x_BNHD), len(flat), -1).to(x_BNHD.dtype)
        )

    def settle(self, x_BNHD: Tensor, changed: Tensor) -> None:
        """After `changed = view(x)` was changed in place: writes it back where it was a copy."""
        if isinstance(self.rows, Indexed):
            self.write(x_BNHD, changed)

    def _strided(self, x: Tensor, rows: Affine) -> Tensor:
        batch, row, head, last = x.stride()
        between = self.heads[1] - self.heads[0] if len(self.heads) > 1 else 0
        return x.as_strided(
            (x.shape[0], self.tiles, self.length, len(self.heads), self.group, x.shape[3]),
            (
                batch,
                rows.tile_step * row,
                rows.step * row,
                between * head + rows.head_step * row,
                head,
                last,
            ),
            x.storage_offset() + rows.start * row + self.heads[0] * head,
        )

    def _index(self, x: Tensor, rows: Indexed) -> tuple[slice, Tensor, Tensor]:
        """Everything of the batch; rows `[T, L, K, 1]`; heads `[K, G]`."""
        heads = head_numbers(self.heads, self.group, x.device)
        return slice(None), rows.on(x.device).transpose(1, 2).unsqueeze(-1), heads


@lru_cache(maxsize=1024)
def head_numbers(heads: tuple[int, ...], group: int, device: torch.device) -> Tensor:
    """All heads of a selection, int64 `[K, G]`, copied to the device once."""
    with torch.inference_mode(False):
        first = torch.tensor(heads, device=device).unsqueeze(-1)
        return first + torch.arange(group, device=device)


def query_rows(tiles: Tiles) -> Selection:
    """The query rows of `tiles`."""
    return Selection(tiles.query, tiles.query_heads, tiles.count, tiles.query_length, tiles.group)


def key_rows(tiles: Tiles) -> Selection:
    """The key rows of `tiles`."""
    return Selection(
        tiles.key, tiles.key_heads, tiles.count, tiles.key_length, overlap=tiles.keys_overlap
    )


def in_cache(*pieces: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equal selections `[B, T, ..]`, some tiles at a time: what is widened on the way to a sum
    then stays in cache."""
    tiles, elements = pieces[0].shape[1], pieces[0].numel()
    some = max(1, _CACHED_ELEMENTS * tiles // max(1, elements))
    return zip(*(torch.split(piece, some, 1) for piece in pieces), strict=True)
