"""Which blocks see which in a neighbourhood, for blocks of any tokens whatever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.pattern import Listed, bounds_of
from ringspan.patterns.neighborhood_axes import Axis

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["active_pairs"]

_STEPS_AT_ONCE = 2**22
"""Of a token to a place on the first axis."""
_LARGEST_TABLE = 2**26
"""Cells of a table of flags; beyond, numbers are sorted."""


def active_pairs(sets: Listed, axes: tuple[Axis, ...]) -> tuple[Ints, Ints]:
    """For each block the blocks of which it sees a token, as compressed rows.

    A window is a product over axes, so what a block sees is found axis by axis: after each, what
    the block's tokens have in common is counted once. `sets` are the blocks, of every token one.
    """
    cells = _Cells.of(sets, axes)
    rows, columns = [], []
    for first, last in _some_blocks(sets, axes[0]):
        block, cell = _reached(sets, axes, cells, first, last)
        seen = cells.blocks.chosen(cell)
        count = len(sets.bounds) - 1
        pair = np.repeat(block, np.diff(seen.bounds)) * count + seen.rows
        pair = _distinct(pair, (last - first) * count)
        rows.append(first + pair // count)
        columns.append(pair % count)
    row = np.concatenate([np.zeros(0, np.int64), *rows])
    indptr = np.searchsorted(row, np.arange(len(sets.bounds)))
    return indptr, np.concatenate([np.zeros(0, np.int64), *columns])


@dataclass(frozen=True, slots=True, eq=False)
class _Cells:
    """The places on all axes at which there are tokens, and the blocks that these are of.

    `levels[a]` lists, ascending, `parent * size + place` for the cells on the axes up to `a`, of
    which `parent` numbers those on the axes before.
    """

    places: tuple[Ints, ...]
    """On each axis, those at which there are tokens."""
    levels: tuple[Ints, ...]
    blocks: Listed
    """For each cell, the blocks with a token in it."""

    @classmethod
    def of(cls, sets: Listed, axes: tuple[Axis, ...]) -> _Cells:
        places, levels = [], []
        cell = np.zeros(len(sets.rows), np.int64)
        for axis in axes:
            there, place = np.unique(axis.place[sets.rows], return_inverse=True)
            level, cell = np.unique(cell * max(len(there), 1) + place, return_inverse=True)
            places.append(there.astype(np.int64))
            levels.append(level)
        block = np.repeat(np.arange(len(sets.bounds) - 1), np.diff(sets.bounds))
        pair = np.unique(cell * max(len(sets.bounds), 1) + block)
        cell, block = np.divmod(pair, max(len(sets.bounds), 1))
        bounds = np.searchsorted(cell, np.arange(len(levels[-1]) + 1))
        return cls(tuple(places), tuple(levels), Listed(block, bounds))


def _some_blocks(sets: Listed, axis: Axis) -> Iterator[tuple[int, int]]:
    """Cuts the blocks into runs whose tokens have a bounded number of keys on the first axis."""
    steps = bounds_of((axis.high - axis.low).astype(np.int64)[sets.rows])[sets.bounds]
    first, count = 0, len(sets.bounds) - 1
    while first < count:
        last = int(np.searchsorted(steps, steps[first] + _STEPS_AT_ONCE, side="right")) - 1
        last = min(max(last, first + 1), count)
        yield first, last
        first = last


def _reached(
    sets: Listed, axes: tuple[Axis, ...], cells: _Cells, first: int, last: int
) -> tuple[Ints, Ints]:
    """Which cells the blocks `first .. last - 1` see: numbers of blocks, from 0, and of cells."""
    lengths = np.diff(sets.bounds[first : last + 1])
    token = sets.rows[sets.bounds[first] : sets.bounds[last]]
    block = np.repeat(np.arange(len(lengths)), lengths)
    cell = np.zeros_like(block)
    # Tokens with the same windows on the axes to come see the same from here on.
    windows = [_windows(axis, token) for axis in axes[1:]]
    which = np.arange(len(token))
    for number, axis in enumerate(axes):
        places, level = cells.places[number], cells.levels[number]
        low, high = (
            np.searchsorted(places, bound[token].astype(np.int64))[which]
            for bound in (axis.low, axis.high)
        )
        counts = high - low
        place = np.arange(counts.sum()) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        block, which = np.repeat(block, counts), np.repeat(which, counts)
        wanted = np.repeat(cell, counts) * max(len(places), 1) + place
        cell = np.minimum(np.searchsorted(level, wanted), max(len(level) - 1, 0))
        there = level[cell] == wanted if len(level) else np.zeros(len(cell), np.bool_)
        block, which, cell = block[there], which[there], cell[there]
        chosen = _first_of_each(
            (block, len(lengths)), (cell, len(level)), *((w[which], n) for w, n in windows[number:])
        )
        block, which, cell = block[chosen], which[chosen], cell[chosen]
    return block, cell


def _windows(axis: Axis, token: Ints) -> tuple[Ints, int]:
    """A number for each different window of the tokens on an axis, and how many there are."""
    span = axis.low[token].astype(np.int64) * (axis.size + 1) + axis.high[token]
    different, number = np.unique(span, return_inverse=True)
    return number, len(different)


def _first_of_each(*columns: tuple[Ints, int]) -> Ints:
    """Where each combination of the columns' values, `0 .. size - 1`, occurs; one place of each."""
    code, size = np.zeros_like(columns[0][0]), 1
    for values, count in columns:
        if size * count >= 2**62:
            # Numbered anew, so that no code overflows.
            different, code = np.unique(code, return_inverse=True)
            size = len(different)
        code, size = code * count + values, size * count
    if size <= _LARGEST_TABLE:
        where = np.full(size, -1, np.int64)
        where[code] = np.arange(len(code))
        return where[where >= 0]
    return np.unique(code, return_index=True)[1]


def _distinct(values: Ints, size: int) -> Ints:
    """The different values among `0 .. size - 1`, ascending."""
    if size <= _LARGEST_TABLE:
        there = np.zeros(size, np.bool_)
        there[values] = True
        return np.flatnonzero(there)
    return np.unique(values)
