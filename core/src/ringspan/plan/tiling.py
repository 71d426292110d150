"""Joins the tiles of several heads into as few launches as possible."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ringspan.contracts.masks import MaskCase
from ringspan.contracts.work import Affine, Bitmaps, Indexed, Rows, Tiles, Work
from ringspan.plan.lines import Lines, listed

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["Joined", "Unit", "grouped_heads", "join_heads"]


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """A batch of tiles for one group of query heads, in rows of the tensors at hand."""

    query_head: int
    """The first of `group` query heads that share a key/value head."""
    group: int
    query: Ints | Lines
    """`[T, Lq]`"""
    key_head: int
    key: Ints | Lines
    """`[T, Lk]`"""
    mask: MaskCase
    part: int
    """Units of one part and head have no query rows in common."""
    low: Ints | None = None
    high: Ints | None = None
    seen: Bitmaps | None = None
    batch: int = -1
    """Units of one batch share their mask; -1 where there is none to share."""
    apart: int = 0
    """Only units with the same number may be joined: others read the same key rows."""
    keys_overlap: bool = False
    left: int = 0
    right: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """Work, and for each of its heads the part of the pattern that it comes from."""

    work: Work
    parts: tuple[int, ...]


def grouped_heads(heads: Iterable[int], group: int) -> Iterator[tuple[int, int, int]]:
    """Query heads by the key/value head they read: first head, how many, and `Unit.apart`.

    Where not all `group` heads of a key/value head are there, each goes alone.
    """
    there = set(heads)
    for kv_head in sorted({head // group for head in there}):
        members = range(kv_head * group, (kv_head + 1) * group)
        if there.issuperset(members):
            yield members[0], group, 0
        else:
            for head in sorted(there.intersection(members)):
                yield head, 1, 1 + head % group


def join_heads(units: Iterable[Unit]) -> tuple[Joined, ...]:
    """Units of equal shape as batches over heads.

    Rows in arithmetic progression stay views: heads whose own numbers and first rows advance
    together (next head, next offset) are one strided tensor. The rest is gathered, all heads
    at once.
    """
    affine: dict[tuple[Any, ...], list[Unit]] = defaultdict(list)
    other: dict[tuple[Any, ...], list[Unit]] = defaultdict(list)
    progression = _Progressions()
    for unit in units:
        query, key = progression.of(unit.query), progression.of(unit.key)
        shape = (
            *(unit.query.shape, unit.key.shape, unit.mask, unit.left, unit.right),
            *(unit.group, unit.apart, unit.keys_overlap),
        )
        if query is None or key is None:
            other[(*shape, unit.batch if unit.seen is not None else -1)].append(unit)
        else:
            affine[(*shape, unit.batch, query, key)].append(unit)
    joined = [
        *(_affine_tiles(chain) for group in affine.values() for chain in _chains(group)),
        *(_indexed_tiles(chosen) for group in other.values() for chosen in _rounds(group)),
    ]
    # Parts that cover most come first, so that later ones merge into rows that are there.
    return tuple(sorted(joined, key=lambda work: min(work.parts)))


class _Progressions:
    """Finds `(tile_step, step)` of rows that are in arithmetic progression both ways.

    Heads of one batch share their rows, so each is looked at once.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Ints | Lines, tuple[int, int] | None]] = {}

    def of(self, rows: Ints | Lines) -> tuple[int, int] | None:
        if id(rows) not in self._known:
            self._known[id(rows)] = (rows, _steps(rows))
        return self._known[id(rows)][1]


def _steps(rows: Ints | Lines) -> tuple[int, int] | None:
    """`(tile_step, step)` where rows ascend in arithmetic progression in both directions.

    Tensors have no negative strides, so descending rows do not count.
    """
    if isinstance(rows, Lines):
        gaps = np.diff(rows.start)
        gap = int(gaps[0]) if len(gaps) else 0
        return (gap, rows.step) if gap >= 0 and (gaps == gap).all() else None
    tile_step = int(rows[1, 0] - rows[0, 0]) if rows.shape[0] > 1 else 0
    step = int(rows[0, 1] - rows[0, 0]) if rows.shape[1] > 1 else 1
    # Equal rows, which fill the columns of a bitmap, are no progression to add along.
    if tile_step < 0 or step < 1:
        return None
    tiles, places = np.arange(rows.shape[0])[:, None], np.arange(rows.shape[1])
    expected = rows[0, 0] + tiles * tile_step + places * step
    return (tile_step, step) if (rows == expected).all() else None


def _first(rows: Ints | Lines) -> int:
    return int(rows.start[0] if isinstance(rows, Lines) else rows[0, 0])


def _chains(units: list[Unit]) -> Iterator[list[Unit]]:
    """Splits units into runs in which head numbers and first rows advance together.

    The longest run from the first unit comes first.
    """
    if _one_run(units):
        yield units
        return
    points: dict[tuple[int, ...], list[Unit]] = defaultdict(list)
    for unit in units:
        points[_point(unit)].append(unit)
    while points:
        first = min(points)
        # Heads and rows advance together, or stay.
        ahead = [
            point
            for point in sorted(points)
            if point[0] > first[0] and all(b >= a for a, b in zip(first, point, strict=True))
        ]
        runs = [_run(first, second, points) for second in ahead]
        best = max([[first], *runs], key=len)
        yield [points[point].pop(0) for point in best]
        for point in best:
            if not points[point]:
                del points[point]


def _one_run(units: list[Unit]) -> bool:
    """Whether the units as they come are one run: a batch whose heads share their rows."""
    points = [_point(unit) for unit in units[:2]]
    if len(points) < 2:
        return True
    step = tuple(b - a for a, b in zip(*points, strict=True))
    ahead = step[0] > 0 and min(step) >= 0
    return ahead and all(
        _point(unit) == tuple(a + index * b for a, b in zip(points[0], step, strict=True))
        for index, unit in enumerate(units)
    )


def _point(unit: Unit) -> tuple[int, ...]:
    return (unit.query_head, _first(unit.query), unit.key_head, _first(unit.key))


def _run(
    first: tuple[int, ...], second: tuple[int, ...], points: Mapping[tuple[int, ...], object]
) -> list[tuple[int, ...]]:
    step = tuple(b - a for a, b in zip(first, second, strict=True))
    run, point = [first], second
    while point in points:
        run.append(point)
        point = tuple(a + b for a, b in zip(point, step, strict=True))
    return run


def _rounds(units: list[Unit]) -> Iterator[list[Unit]]:
    """Splits units so that no head, and so no row, occurs twice in a round."""
    rounds: list[dict[int, Unit]] = []
    for unit in units:
        free = next((chosen for chosen in rounds if unit.query_head not in chosen), None)
        if free is None:
            free = {}
            rounds.append(free)
        free[unit.query_head] = unit
    return (list(chosen.values()) for chosen in rounds)


def _affine_tiles(units: list[Unit]) -> Joined:
    first, second = _point(units[0]), _point(units[min(1, len(units) - 1)])

    def rows(rows: Ints | Lines, head_step: int) -> Affine:
        tile_step, step = _steps(rows) or (0, 0)
        return Affine(_first(rows), tile_step, head_step, step)

    query = rows(units[0].query, second[1] - first[1])
    return _joined(units, query, rows(units[0].key, second[3] - first[3]))


def _indexed_tiles(units: list[Unit]) -> Joined:
    query = _by_head([unit.query for unit in units])
    key = _by_head([unit.key for unit in units])
    return _joined(units, query, key)


def _joined(units: list[Unit], query: Rows, key: Rows) -> Joined:
    unit = units[0]
    tiles = Tiles(
        count=unit.query.shape[0],
        query_length=unit.query.shape[1],
        key_length=unit.key.shape[1],
        query=query,
        query_heads=tuple(unit.query_head for unit in units),
        key=key,
        key_heads=tuple(unit.key_head for unit in units),
        group=unit.group,
        mask=unit.mask,
        low=_bound([unit.low for unit in units]),
        high=_bound([unit.high for unit in units]),
        seen=unit.seen,
        keys_overlap=unit.keys_overlap,
        left=unit.left,
        right=unit.right,
    )
    return Joined(tiles, tuple(unit.part for unit in units))


def _by_head(rows: list[Ints | Lines]) -> Indexed:
    """`[T, K, L]`, without a copy where all heads share their rows."""
    if all(other is rows[0] for other in rows):
        shared = listed(rows[0])
        tiles, length = shared.shape
        return Indexed(np.broadcast_to(shared[:, None], (tiles, len(rows), length)))
    return Indexed(np.stack([listed(some) for some in rows], axis=1))


def _bound(bounds: list[Ints | None]) -> Indexed | None:
    """`[T, 1, L]` where all heads share it, else `[T, K, L]`."""
    given = [bound for bound in bounds if bound is not None]
    if not given:
        return None
    if all(bound is given[0] for bound in given):
        return Indexed(given[0][:, None])
    return Indexed(np.stack(given, axis=1))
