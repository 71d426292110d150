"""Where the rows of branches and pieces lie: every kind of layout, and what it means literally."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ringspan.contracts.selection import Selection
from ringspan.contracts.work import Affine, Indexed, Rows

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["HEADS", "LAYOUTS", "Heads", "Place", "covered", "heads_of", "listed", "place"]


@dataclass(frozen=True, slots=True)
class Place:
    """The rows of some tiles, in a tensor of at least so many rows."""

    rows: Rows
    needs: int
    overlap: bool = False


Placing = Callable[[int, int, int, torch.Generator], Place]
"""From the number of tiles, of heads, and of rows of a tile."""


def _whole(tiles: int, heads: int, length: int, draw: torch.Generator) -> Place:
    return Place(Affine(0, length, 0, 1), tiles * length)


def _dilated(tiles: int, heads: int, length: int, draw: torch.Generator) -> Place:
    """Every third row, and each head one row further on."""
    segment = 3 * length + 2
    return Place(Affine(1, segment, 1, 3), tiles * segment + heads + 1)


def _interleaved(tiles: int, heads: int, length: int, draw: torch.Generator) -> Place:
    """Between two rows of a tile lie those of all others."""
    return Place(Affine(2, 1, 0, tiles), 2 + tiles * length + 1)


def _windows(tiles: int, heads: int, length: int, draw: torch.Generator) -> Place:
    """Each tile begins within the one before."""
    step = max(1, length // 2)
    return Place(Affine(0, step, 0, 1), (tiles - 1) * step + length, overlap=True)


def _again(tiles: int, heads: int, length: int, draw: torch.Generator) -> Place:
    """The same rows for all tiles."""
    return Place(Affine(1, 0, 0, 2), 2 * length + 1, overlap=True)


def _scattered(tiles: int, heads: int, length: int, draw: torch.Generator) -> Place:
    """Anywhere, and elsewhere in each head; no row occurs twice."""
    count = tiles * length + 5
    orders = [torch.randperm(count, generator=draw)[: tiles * length] for _ in range(heads)]
    rows = torch.stack([order.view(tiles, length).sort(-1).values for order in orders], 1)
    return Place(Indexed(rows.numpy()), count)


def _alike(tiles: int, heads: int, length: int, draw: torch.Generator) -> Place:
    """Anywhere, and the same rows in each head."""
    one = _scattered(tiles, 1, length, draw)
    assert isinstance(one.rows, Indexed)
    rows = np.broadcast_to(one.rows.rows, (tiles, heads, length))
    return Place(Indexed(rows), one.needs)


def _drawn(tiles: int, heads: int, length: int, draw: torch.Generator) -> Place:
    """Anywhere, and perhaps in several tiles."""
    count = length + 3
    tile = [
        torch.stack([torch.randperm(count, generator=draw)[:length] for _ in range(heads)])
        for _ in range(tiles)
    ]
    return Place(Indexed(torch.stack(tile).sort(-1).values.numpy()), count, overlap=True)


LAYOUTS: dict[str, tuple[Placing, Placing]] = {
    "whole": (_whole, _whole),
    "dilated": (_dilated, _dilated),
    "interleaved": (_interleaved, _dilated),
    "windows": (_whole, _windows),
    "one run of keys": (_dilated, _again),
    "indexed": (_scattered, _scattered),
    "indexed alike": (_alike, _alike),
    "indexed windows": (_whole, _drawn),
}
"""How the rows of queries and of keys lie."""

HEADS = ("all", "some groups", "one of each group")
"""Which heads take part."""


@dataclass(frozen=True, slots=True)
class Heads:
    """Query heads, each the first of `group` in a row, and the key/value heads they read."""

    query: tuple[int, ...]
    key: tuple[int, ...]
    group: int


def heads_of(which: str, kv_heads: int, group_size: int) -> Heads:
    """One of `HEADS`."""
    key = tuple(range(0, kv_heads, 2 if which == "some groups" else 1))
    if which == "one of each group":
        return Heads(tuple(head * group_size + group_size - 1 for head in key), key, 1)
    return Heads(tuple(head * group_size for head in key), key, group_size)


def place(
    layout: str, heads: Heads, tiles: int, lengths: tuple[int, int], draw: torch.Generator
) -> tuple[Selection, Selection, tuple[int, int]]:
    """Rows of queries and of keys, and how many rows their tensors need."""
    query, key = (
        placing(tiles, len(heads.query), length, draw)
        for placing, length in zip(LAYOUTS[layout], lengths, strict=True)
    )
    return (
        Selection(query.rows, heads.query, tiles, lengths[0], heads.group),
        Selection(key.rows, heads.key, tiles, lengths[1], overlap=key.overlap),
        (query.needs, key.needs),
    )


def listed(selection: Selection) -> Tensor:
    """int64 `[T, K, L]`: each row by its number, from the definition of rows; heads may share."""
    rows = selection.rows
    if isinstance(rows, Indexed):
        table = torch.from_numpy(np.array(rows.rows))
        return table.expand(selection.tiles, len(selection.heads), selection.length)
    tile = torch.arange(selection.tiles)[:, None, None]
    head = torch.arange(len(selection.heads))[:, None]
    row = torch.arange(selection.length)
    return rows.start + tile * rows.tile_step + head * rows.head_step + row * rows.step


def covered(selection: Selection, rows: int, heads: int) -> Tensor:
    """bool `[rows, heads]`: which rows of a tensor are selected."""
    found = torch.zeros(rows, heads, dtype=torch.bool)
    for index, first in enumerate(selection.heads):
        for head in range(first, first + selection.group):
            found[listed(selection)[:, index].flatten(), head] = True
    return found
