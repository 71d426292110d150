"""Tiles of any lengths between the queries of one rank and the keys of another, in positions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.masks import MaskCase
from ringspan.contracts.pattern import Listed
from ringspan.contracts.work import Bitmaps, equal_groups
from ringspan.plan.holdings import counted
from ringspan.plan.lines import Lines, listed

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

__all__ = ["PAIRS_AT_ONCE", "Batch", "Cells", "distinct"]

PAIRS_AT_ONCE = 2**24
"""Pairs whose bitmap is evaluated at a time."""
_COLUMNS = 16
"""Keys of a bitmap are rounded up to so many, so that few shapes occur."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tiles of equal lengths and one mask case, in positions."""

    query: Ints | Lines
    """`[T, Lq]`"""
    key: Ints | Lines
    """`[T, Lk]`"""
    mask: MaskCase
    low: Ints | None = None
    """`[T, Lq]` for `INTERVAL`"""
    high: Ints | None = None
    seen: Bitmaps | None = None
    keys_overlap: bool = False
    """Whether two of the tiles may have keys in common."""
    left: int = 0
    """For `BAND`"""
    right: int = 0

    def seen_keys(self) -> Ints:
        """All keys that some query sees; bitmaps have columns that nobody does."""
        key = listed(self.key)
        if self.seen is None:
            return key.ravel()
        columns: Bools = np.logical_or.reduce(self.seen.table, axis=1)
        chosen: Ints = key[columns[self.seen.which]]
        return chosen


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Tile `t` has the queries `query[t]` and the keys `key[t]`."""

    query: Listed
    key: Listed
    low: Ints | None = None
    """Per query row, the keys of its tile that it sees: from `low` to below `high`; None: all."""
    high: Ints | None = None
    seen: Callable[[Ints, Ints], Bools] | None = None
    """Which of those pairs count, by position."""
    step: int | None = None
    """How far apart the rows of a tile are, where they are evenly spaced."""

    def causal(self) -> Cells:
        """Only keys of no later position. Rows of every tile ascend."""
        visible = self._visible()
        if self.low is None or self.high is None:
            return replace(self, low=np.zeros_like(visible), high=visible)
        return replace(self, high=np.minimum(self.high, visible))

    def causal_in_any_order(self) -> Cells:
        """The same for tiles whose rows do not ascend: a matter of each pair."""
        seen = self.seen

        def past(query: Ints, key: Ints) -> Bools:
            earlier: Bools = key <= query
            return earlier if seen is None else earlier & seen(query, key)

        return replace(self, seen=past)

    def _visible(self) -> Ints:
        """For each query row, how many keys of its tile have no later position."""
        if self.query is self.key:
            starts = np.repeat(self.query.bounds[:-1], np.diff(self.query.bounds))
            own: Ints = np.arange(1, len(starts) + 1) - starts
            return own
        query_lengths, key_lengths = np.diff(self.query.bounds), np.diff(self.key.bounds)
        tiles = np.arange(len(query_lengths))
        beyond = max(int(x.max()) if len(x) else 0 for x in (self.query.rows, self.key.rows)) + 1
        keys = self.key.rows + np.repeat(tiles, key_lengths) * beyond
        queries = self.query.rows + np.repeat(tiles, query_lengths) * beyond
        before = np.repeat(self.key.bounds[:-1], query_lengths)
        return np.searchsorted(keys, queries, side="right") - before

    def batches(self, rows: int | None = None, *, alike: int | None = None) -> Iterator[Batch]:
        """Equal tiles together; rows that see nothing and keys that nobody sees are dropped.

        Tiles are first cut into pieces of at most `rows` queries with the keys that those see,
        unless all see the same. At least `alike` queries in a row that see the same are a piece of
        their own.
        """
        if self.low is None or self.high is None:
            if self.seen is None:
                yield from self._full()
                return
            everything = np.repeat(np.diff(self.key.bounds), np.diff(self.query.bounds))
            yield from self._with(np.zeros_like(everything), everything)._banded(rows, alike)
        else:
            yield from self._banded(rows, alike)

    def _with(self, low: Ints, high: Ints) -> Cells:
        return replace(self, low=low, high=high)

    def _full(self) -> Iterator[Batch]:
        lengths = np.diff(self.query.bounds), np.diff(self.key.bounds)
        some = np.flatnonzero((lengths[0] > 0) & (lengths[1] > 0))
        for chosen in equal_groups(*(length[some] for length in lengths)):
            at = some[chosen]
            query, key = (
                rows.rows[rows.bounds[at, None] + np.arange(length[at[0]])]
                for rows, length in zip((self.query, self.key), lengths, strict=True)
            )
            yield Batch(query, key, MaskCase.FULL)

    def _banded(self, rows: int | None, alike: int | None) -> Iterator[Batch]:
        bands = _Bands.of(self, rows, alike)
        if not len(bands.query_start):
            return
        if self.seen is not None:
            for chosen in equal_groups(bands.query_length, bands.key_length):
                yield from _bitmap_batches(bands.batch(chosen, MaskCase.INTERVAL), self.seen)
            return
        cases, left, right = bands.cases()
        groups = equal_groups(cases, bands.query_length, bands.key_length, left, right)
        for chosen in groups:
            first = chosen[0]
            batch = bands.batch(chosen, list(MaskCase)[cases[first]])
            yield replace(batch, left=int(left[first]), right=int(right[first]))


@dataclass(frozen=True, slots=True, eq=False)
class _Bands:
    """Tiles as runs of query rows and of key rows, with an interval of keys for each query."""

    query: Ints
    key: Ints
    low: Ints
    """Counted from the tile of the cells, whose key `first` is the first one here."""
    high: Ints
    first: Ints
    query_start: Ints
    query_length: Ints
    key_start: Ints
    key_length: Ints
    step: int | None
    keys_overlap: bool

    @classmethod
    def of(cls, cells: Cells, rows: int | None, alike: int | None) -> _Bands:
        assert cells.low is not None
        assert cells.high is not None
        query, low, high, bounds = cells.query.rows, cells.low, cells.high, cells.query.bounds
        sees = low < high
        all_see = bool(sees.all())
        if not all_see:
            query, low, high = query[sees], low[sees], high[sees]
            bounds = counted(sees)[bounds]
        # Where no query sees the keys between, two tiles do not compute and fetch them.
        runs = np.union1d(bounds, np.flatnonzero(low[1:] > high[:-1]) + 1)
        if alike is not None:
            runs = np.union1d(runs, _plateaus(low, high, runs, alike))
        run, start, length = _pieces(runs, _most_rows(cells, low, high, runs, rows))
        tile = np.searchsorted(bounds, runs[run], side="right") - 1
        if not len(start):
            none = (start, start, length, start, length)
            return cls(query, cells.key.rows, low, high, *none, None, False)
        first = np.minimum.reduceat(low, start)
        last = np.maximum.reduceat(high, start)
        return cls(
            query,
            cells.key.rows,
            low,
            high,
            first,
            start,
            length,
            cells.key.bounds[tile] + first,
            last - first,
            cells.step if cells.seen is None and all_see else None,
            len(start) >= len(runs),
        )

    def cases(self) -> tuple[Ints, Ints, Ints]:
        """For each tile its mask case by number, and of a band its `left` and `right`, else 0."""
        starts, ends = self.query_start, self.query_start + self.query_length - 1
        low_last, right = self.low[ends] - self.first, self.high[starts] - self.first - 1
        # Bounds that nobody oversteps are as wide as any query could see.
        left, is_band = self.query_length - 1 - low_last, self._are_bands(starts, ends)
        wide = is_band & (left >= self.query_length - 1) & (right >= self.key_length - 1)
        square = self.query_length == self.key_length
        stair = is_band & square & (left == self.query_length - 1) & (right == 0)
        cases = list(MaskCase)
        found = np.where(is_band, cases.index(MaskCase.BAND), cases.index(MaskCase.INTERVAL))
        found = np.where(stair, cases.index(MaskCase.CAUSAL), found)
        found = np.where(wide, cases.index(MaskCase.FULL), found)
        named = found == cases.index(MaskCase.BAND)
        return found, np.where(named, left, 0), np.where(named, right, 0)

    def _are_bands(self, starts: Ints, ends: Ints) -> Bools:
        """Whether bounds stay or rise by one from row to row, `low` later on and `high` before."""
        low, high = _steps(self.low), _steps(self.high)
        # Steps that only grow, or only fall, are between those of the first and the last row.
        turns = np.zeros(len(low), dtype=bool)
        turns[:-1] = (low[1:] < low[:-1]) | (high[1:] > high[:-1])
        turns[ends] = turns[ends - 1] = False  # Of steps into the next tile.
        straight = ~np.logical_or.reduceat(turns, starts)
        last = np.maximum(ends - 1, 0)
        rising = (low[starts] >= 0) & (low[last] <= 1) & (high[starts] <= 1) & (high[last] >= 0)
        found: Bools = (starts == ends) | (straight & rising)
        return found

    def batch(self, tiles: Ints, case: MaskCase) -> Batch:
        query_length, key_length = (
            int(length[tiles[0]]) for length in (self.query_length, self.key_length)
        )
        low = high = None
        if case is MaskCase.INTERVAL:
            rows = self.query_start[tiles, None] + np.arange(query_length)
            low, high = (x[rows] - self.first[tiles, None] for x in (self.low, self.high))
        return Batch(
            self._rows(self.query, self.query_start[tiles], query_length),
            self._rows(self.key, self.key_start[tiles], key_length),
            case,
            low,
            high,
            keys_overlap=self.keys_overlap,
        )

    def _rows(self, rows: Ints, start: Ints, length: int) -> Ints | Lines:
        if self.step is not None:
            return Lines(rows[start], self.step, length)
        some: Ints = rows[start[:, None] + np.arange(length)]
        return some


def _steps(x: Ints) -> Ints:
    """From each element to the next one; of the last, 0."""
    steps = np.empty_like(x)
    np.subtract(x[1:], x[:-1], out=steps[:-1])
    steps[-1] = 0
    return steps


def _plateaus(low: Ints, high: Ints, runs: Ints, least: int) -> Ints:
    """Where at least so many rows of a run that see the same begin and end."""
    changes = np.flatnonzero((low[1:] != low[:-1]) | (high[1:] != high[:-1])) + 1
    edges = np.union1d(runs, changes)
    long = np.diff(edges) >= least
    return np.concatenate([edges[:-1][long], edges[1:][long]])


def _most_rows(cells: Cells, low: Ints, high: Ints, runs: Ints, rows: int | None) -> Ints:
    """For each run, into pieces of how many rows it is cut."""
    lengths = np.diff(runs)
    if rows is None:
        return lengths
    first, last = runs[:-1], runs[1:] - 1
    flat = (low[first] == low[last]) & (high[first] == high[last])
    # Bitmaps are bounded by the rows of a tile, whatever it is that the rows see.
    return np.where(flat & (cells.seen is None), lengths, rows)


def _pieces(bounds: Ints, rows: Ints) -> tuple[Ints, Ints, Ints]:
    """Runs cut into pieces of at most `rows`: the number of the run, the start and the length."""
    counts = -(-np.diff(bounds) // np.maximum(rows, 1))
    tile = np.repeat(np.arange(len(counts)), counts)
    number = np.arange(len(tile)) - np.repeat(np.cumsum(counts) - counts, counts)
    start = bounds[tile] + number * rows[tile]
    return tile, start, np.minimum(bounds[tile + 1] - start, rows[tile])


def _bitmap_batches(batch: Batch, seen: Callable[[Ints, Ints], Bools]) -> Iterator[Batch]:
    """The tiles of a batch under `seen`: full where all of it is, else with bitmaps."""
    queries, keys = listed(batch.query), listed(batch.key)
    pairs = queries.shape[1] * keys.shape[1]
    step = max(1, PAIRS_AT_ONCE // pairs)
    low, high = batch.low, batch.high
    assert low is not None
    assert high is not None
    number = np.arange(keys.shape[1])
    everything = not low.any() and bool((high == len(number)).all())
    narrowed: dict[int, list[tuple[Ints, Ints, Bools]]] = {}
    for first in range(0, len(queries), step):
        some = slice(first, first + step)
        query, key = queries[some], keys[some]
        bitmap = seen(query[:, :, None], key[:, None, :])
        if not everything:
            bitmap = bitmap & ((number >= low[some, :, None]) & (number < high[some, :, None]))
        for width, piece in _narrowed(query, key, bitmap):
            narrowed.setdefault(width, []).append(piece)
    for pieces in narrowed.values():
        query, key, bitmap = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        full = bitmap.all(axis=(1, 2))
        if full.any():
            yield Batch(query[full], key[full], MaskCase.FULL)
        if not full.all():
            shown = _shared(bitmap[~full])
            yield Batch(query[~full], key[~full], MaskCase.BITMAP, seen=shown)


def _narrowed(
    query: Ints, key: Ints, bitmap: Bools
) -> Iterator[tuple[int, tuple[Ints, Ints, Bools]]]:
    """Tiles with the keys that anybody sees in front, cut to about as many."""
    columns = bitmap.any(axis=1)
    count = columns.sum(axis=1)
    rounded = np.minimum(-(-count // _COLUMNS) * _COLUMNS, key.shape[1])
    # What is seen by all needs no padding, and so no bitmap.
    whole = bitmap.sum(axis=(1, 2)) == count * query.shape[1]
    width = np.where(whole, count, rounded)
    order = np.argsort(~columns, axis=1, kind="stable")
    for chosen in equal_groups(width):
        size = int(width[chosen[0]])
        if not size:
            continue
        at = order[chosen, :size]
        yield (
            size,
            (
                query[chosen],
                np.take_along_axis(key[chosen], at, axis=1),
                np.take_along_axis(bitmap[chosen], at[:, None, :], axis=2),
            ),
        )


def _shared(bitmap: Bools) -> Bitmaps:
    """Equal bitmaps stored once: on a grid, all tiles away from the border have the same."""
    which, first = distinct(np.packbits(bitmap.reshape(len(bitmap), -1), axis=1))
    return Bitmaps(bitmap[first], which)


def distinct(packed: npt.NDArray[np.uint8]) -> tuple[Ints, Ints]:
    """Equal rows by one number each, from 0 in order of appearance, and where each first stands."""
    # A dictionary, because sorting rows of so many bytes takes most of the time of a plan.
    numbers: dict[bytes, int] = {}
    rows = (numbers.setdefault(row.tobytes(), len(numbers)) for row in packed)
    which = np.fromiter(rows, np.int64, count=len(packed))
    return which, np.unique(which, return_index=True)[1]
