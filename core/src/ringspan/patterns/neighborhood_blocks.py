"""Neighbourhoods on two and three axes, as pairs of blocks of neighbouring tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.pattern import Blocks, Domain, Listed
from ringspan.patterns.neighborhood_rule import AxisRule

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

__all__ = ["Boxes", "blocks"]

_TOKENS = 64
"""Tokens that a block should have, at least, for kernels to be worth their start."""
_MOST_CELLS = 256
"""Cells of a tile that a stride may ask for."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """The bounding box of every document that has tokens."""

    number: Ints
    """Of each token, the number of its box, `[N]`."""
    origin: Ints
    """`[boxes, axes]`"""
    extent: Ints
    """`[boxes, axes]`"""

    @classmethod
    def of(cls, domain: Domain) -> Boxes:
        """Of tokens with coordinates; without documents, they have one box."""
        points = domain.tokens.coordinates
        assert points is not None
        there = domain.lengths > 0
        starts, lengths = domain.starts[there], domain.lengths[there]
        if not len(starts):
            none = np.zeros((0, points.shape[1]), np.int64)
            return cls(np.zeros(0, np.int64), none, none)
        origin = np.minimum.reduceat(points, starts, axis=0)
        extent = np.maximum.reduceat(points, starts, axis=0) - origin + 1
        return cls(np.repeat(np.arange(len(starts)), lengths), origin, extent)


def blocks(heads: tuple[int, ...], rules: tuple[AxisRule, ...], domain: Domain) -> Blocks:
    """Blocks are the tokens of a residue class in a tile of its coordinates; empty tiles are none.

    A block sees the blocks that reach into the box which its tokens' windows span together.
    """
    axes = _axes(rules, domain)
    rows = np.lexsort([axis.tile for axis in reversed(axes)])
    tree = _Tree.of([axis.tile[rows] for axis in axes], [axis.tiles for axis in axes])
    indptr, indices = tree.find(
        [_each(np.minimum, axis.low[rows], tree.first) // axis.side for axis in axes],
        [(_each(np.maximum, axis.high[rows], tree.first) - 1) // axis.side for axis in axes],
    )
    lengths = np.diff(tree.first, append=len(rows))
    return Blocks(heads, Listed.of(rows, lengths), indptr, indices, _Seen(axes))


@dataclass(frozen=True, slots=True, eq=False)
class _Axis:
    """An axis unfolded: the residue classes of each document one after the other.

    So that a token sees one run of the axis, whatever the dilation. Classes start at multiples
    of `side`.
    """

    place: Ints
    """Where each token stands, `[N]`."""
    low: Ints
    high: Ints
    """A token sees the places `low .. high - 1`, `[N]` each."""
    side: int
    """Places of a tile."""
    tiles: int

    @classmethod
    def of(
        cls, rule: AxisRule, coordinate: Ints, extent: Ints, document: Ints | int, side: int
    ) -> _Axis:
        number, residue = np.divmod(coordinate, rule.dilation)
        low, high = rule.keys(number, -(-(extent - residue) // rule.dilation))
        tiles = int(number.max(initial=0)) // side + 1
        family = document * (int(residue.max(initial=0)) + 1) + residue
        start = family * tiles * side
        tiles *= int(family.max(initial=0)) + 1
        # Small integers, for a large part of planning is to compare them.
        integer = np.min_scalar_type(-tiles * side - 1)
        place, low, high = ((start + x).astype(integer) for x in (number, low, high))
        return cls(place, low, high, side, tiles)

    @property
    def tile(self) -> Ints:
        """Of each token, `[N]`."""
        return self.place // self.side


def _axes(rules: tuple[AxisRule, ...], domain: Domain) -> tuple[_Axis, ...]:
    points, boxes = domain.tokens.coordinates, Boxes.of(domain)
    assert points is not None
    inside = points - boxes.origin[boxes.number]
    extent = boxes.extent[boxes.number]
    return tuple(
        # Where documents part on one axis, they need not on the others.
        _Axis.of(rule, inside[:, axis], extent[:, axis], boxes.number if axis == 0 else 0, side)
        for axis, (rule, side) in enumerate(zip(rules, _sides(rules, boxes), strict=True))
    )


def _sides(rules: tuple[AxisRule, ...], boxes: Boxes) -> list[int]:
    """How large tiles are on each axis.

    Tokens of a stride group share their window, so tiles of whole groups compute no hidden pair;
    beyond that, large tiles compute more hidden pairs and small ones start more work. Tiles
    become large enough for `_TOKENS` tokens, but with gaps not much larger than the window.
    """
    largest = boxes.extent.max(axis=0, initial=1).tolist()
    most = [-(-extent // rule.dilation) for rule, extent in zip(rules, largest, strict=True)]
    sides = [min(rule.stride, size) for rule, size in zip(rules, most, strict=True)]
    while math.prod(sides) > _MOST_CELLS:
        axis = sides.index(max(sides))
        sides[axis] = next(side for side in range(sides[axis] - 1, 0, -1) if not sides[axis] % side)
    cells = boxes.extent.prod(axis=1, dtype=np.float64).sum()
    wanted = _TOKENS * cells / max(1, len(boxes.number))
    wanted = max(_TOKENS, min(wanted, math.prod(rule.window for rule in rules)))
    while math.prod(sides) < wanted:
        growing = [axis for axis, side in enumerate(sides) if side < most[axis]]
        if not growing:
            break
        sides[min(growing, key=lambda axis: sides[axis] / rules[axis].window)] *= 2
    return sides


def _each(extreme: np.ufunc, values: Ints, first: Ints) -> Ints:
    """Of each block's values; `reduceat` refuses none at all."""
    return extreme.reduceat(values, first) if len(first) else values


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Which keys a query sees: those in its window on every axis."""

    axes: tuple[_Axis, ...]

    def __call__(self, query: Ints, key: Ints) -> Bools:
        seen = np.ones((), np.bool_)
        for axis in self.axes:
            place = axis.place[key]
            seen = seen & (axis.low[query] <= place)
            seen &= place < axis.high[query]
        return seen


@dataclass(frozen=True, slots=True, eq=False)
class _Tree:
    """Blocks as the leaves of a tree with one level per axis.

    Nodes of a level are numbered in order, and `keys[level]`, ascending, knows each by its
    parent's number and its tile: `parent * tiles + tile`. So the children of a node in a range
    of tiles are found by two searches, and empty tiles cost nothing.
    """

    first: Ints
    """The first row of each leaf."""
    keys: tuple[Ints, ...]
    tiles: tuple[int, ...]

    @classmethod
    def of(cls, tile: list[Ints], tiles: list[int]) -> _Tree:
        """From the tiles of each row on each axis, in lexical order, and how many there are."""
        new, node, keys = np.zeros(len(tile[0]), np.bool_), np.zeros_like(tile[0]), []
        for own, count in zip(tile, tiles, strict=True):
            new |= np.diff(own, prepend=-1) != 0
            keys.append((node * count + own)[new])
            node = np.cumsum(new) - 1
        return cls(np.flatnonzero(new), tuple(keys), tuple(tiles))

    def find(self, low: list[Ints], high: list[Ints]) -> tuple[Ints, Ints]:
        """For each leaf, the leaves in tiles `low .. high` of every axis, as compressed rows."""
        leaf = np.arange(len(self.first))
        node = np.zeros_like(leaf)
        for keys, tiles, lower, upper in zip(self.keys, self.tiles, low, high, strict=True):
            start = np.searchsorted(keys, node * tiles + lower[leaf])
            stop = np.searchsorted(keys, node * tiles + upper[leaf], side="right")
            counts = stop - start
            leaf = np.repeat(leaf, counts)
            node = np.arange(len(leaf)) + np.repeat(stop - np.cumsum(counts), counts)
        return np.searchsorted(leaf, np.arange(len(self.first) + 1)), node
