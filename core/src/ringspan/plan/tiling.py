"""Joins the tiles of several heads into as few launches as possible."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ringspan.contracts.masks import MaskCase
from ringspan.contracts.work import Affine, Indexed, Rows, Tiles

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["Unit", "join_heads"]


@dataclass(frozen=True, slots=True, eq=False)
class Unit:
    """A batch of tiles for one key/value head, in rows of the tensors at hand."""

    query_head: int
    query: Ints
    """`[T, Lq]`"""
    key_head: int
    key: Ints
    """`[T, Lk]`"""
    mask: MaskCase
    high: Ints | None
    batch: int
    """Units of one batch share their mask."""


def join_heads(units: Iterable[Unit]) -> tuple[Tiles, ...]:
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
        shape = (unit.query.shape, unit.key.shape, unit.mask)
        if query is None or key is None:
            other[shape].append(unit)
        else:
            affine[(*shape, unit.high is not None and unit.batch, query, key)].append(unit)
    return (
        *(_affine_tiles(chain) for group in affine.values() for chain in _chains(group)),
        *(_indexed_tiles(chosen) for group in other.values() for chosen in _rounds(group)),
    )


class _Progressions:
    """Finds `(tile_step, step)` of rows that are in arithmetic progression both ways.

    Heads of one batch share their array, so each array is looked at once.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[Ints, tuple[int, int] | None]] = {}

    def of(self, rows: Ints) -> tuple[int, int] | None:
        if id(rows) not in self._known:
            self._known[id(rows)] = (rows, _steps(rows))
        return self._known[id(rows)][1]


def _steps(rows: Ints) -> tuple[int, int] | None:
    """`(tile_step, step)` where rows ascend in arithmetic progression in both directions.

    Tensors have no negative strides, so descending rows do not count.
    """
    tile_step = int(rows[1, 0] - rows[0, 0]) if rows.shape[0] > 1 else 0
    step = int(rows[0, 1] - rows[0, 0]) if rows.shape[1] > 1 else 1
    if tile_step < 0 or step < 0:
        return None
    tiles, places = np.arange(rows.shape[0])[:, None], np.arange(rows.shape[1])
    expected = rows[0, 0] + tiles * tile_step + places * step
    return (tile_step, step) if (rows == expected).all() else None


def _chains(units: list[Unit]) -> Iterator[list[Unit]]:
    """Splits units into runs in which head numbers and first rows advance together.

    The longest run from the first unit comes first.
    """
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
        yield [points[point].pop() for point in best]
        for point in best:
            if not points[point]:
                del points[point]


def _point(unit: Unit) -> tuple[int, ...]:
    return (unit.query_head, int(unit.query[0, 0]), unit.key_head, int(unit.key[0, 0]))


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


def _affine_tiles(units: list[Unit]) -> Tiles:
    first, second = _point(units[0]), _point(units[min(1, len(units) - 1)])

    def rows(array: Ints, head_step: int) -> Affine:
        tile_step, step = _steps(array) or (0, 0)
        return Affine(int(array[0, 0]), tile_step, head_step, step)

    query = rows(units[0].query, second[1] - first[1])
    return _tiles(units, query, rows(units[0].key, second[3] - first[3]))


def _indexed_tiles(units: list[Unit]) -> Tiles:
    query = Indexed(np.stack([unit.query for unit in units], axis=1))
    key = Indexed(np.stack([unit.key for unit in units], axis=1))
    return _tiles(units, query, key)


def _tiles(units: list[Unit], query: Rows, key: Rows) -> Tiles:
    unit = units[0]
    highs = [other.high for other in units if other.high is not None]
    return Tiles(
        count=unit.query.shape[0],
        query_length=unit.query.shape[1],
        key_length=unit.key.shape[1],
        query=query,
        query_heads=tuple(unit.query_head for unit in units),
        key=key,
        key_heads=tuple(unit.key_head for unit in units),
        mask=unit.mask,
        high=Indexed(np.stack(highs, axis=1)) if highs else None,
    )
