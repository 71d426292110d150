"""Neighbourhoods on two and three axes, as pairs of blocks of tokens that lie close together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.pattern import Blocks, Domain, Listed
from ringspan.patterns.neighborhood_axes import Axis, Boxes
from ringspan.patterns.neighborhood_rule import AxisRule
from ringspan.patterns.neighborhood_stored import active_pairs

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

__all__ = ["blocks"]

_TOKENS = 64
"""Of a block: with more, more hidden pairs are computed; with fewer, kernels start too often."""
_MOST_CELLS = 256
"""Cells of a tile that a stride may ask for."""


def blocks(heads: tuple[int, ...], rules: tuple[AxisRule, ...], domain: Domain) -> Blocks:
    """The blocks of storage where there are such, with those that they see.

    Otherwise a block's tokens are of one document and residue class, and it sees the blocks that
    reach into the box which its tokens' windows span together.
    """
    boxes = Boxes.of(domain)
    axes = Axis.all(rules, domain, boxes)
    if domain.stored is not None:
        return Blocks(heads, domain.stored, *active_pairs(domain.stored, axes), _Seen(axes))
    full = len(boxes.number) == boxes.cells
    tree = _tiles(rules, axes, boxes) if full else _packs(rules, axes, boxes)
    indptr, indices = tree.overlapping(
        [_each(np.minimum, axis.low[tree.rows], tree.first) for axis in axes],
        [_each(np.maximum, axis.high[tree.rows], tree.first) - 1 for axis in axes],
    )
    lengths = np.diff(tree.first, append=len(tree.rows))
    return Blocks(heads, Listed.of(tree.rows, lengths), indptr, indices, _Seen(axes))


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Which keys a query sees: those in its window on every axis."""

    axes: tuple[Axis, ...]

    def __call__(self, query: Ints, key: Ints) -> Bools:
        seen = np.ones((), np.bool_)
        for axis in self.axes:
            place = axis.place[key]
            seen = seen & (axis.low[query] <= place)
            seen &= place < axis.high[query]
        return seen


def _each(extreme: np.ufunc, values: Ints, first: Ints) -> Ints:
    """Of each block's values; `reduceat` refuses none at all."""
    return extreme.reduceat(values, first) if len(first) else values


@dataclass(frozen=True, slots=True, eq=False)
class _Tree:
    """Blocks as the leaves of a tree with one level per axis.

    Siblings come in order of place. So those that overlap a run of places follow each other, and
    two searches find them, among the children of all nodes at once: a level's `least` and `most`
    are `parent * size + place`, for the least and the largest place in each node.
    """

    rows: Ints
    """Tokens, leaf by leaf."""
    first: Ints
    """The first row of each leaf."""
    least: tuple[Ints, ...]
    most: tuple[Ints, ...]
    sizes: tuple[int, ...]

    @classmethod
    def of(cls, rows: Ints, begins: list[Bools], axes: tuple[Axis, ...]) -> _Tree:
        """From tokens in order, and where a node of each level begins."""
        least, most, parent = [], [], np.zeros(len(rows), np.int64)
        for begin, axis in zip(begins, axes, strict=True):
            first, place = np.flatnonzero(begin), axis.place[rows]
            base = parent[first] * axis.size
            least.append(base + _each(np.minimum, place, first))
            most.append(base + _each(np.maximum, place, first))
            parent = np.cumsum(begin) - 1
        first = np.flatnonzero(begins[-1])
        return cls(rows, first, tuple(least), tuple(most), tuple(axis.size for axis in axes))

    def overlapping(self, low: list[Ints], high: list[Ints]) -> tuple[Ints, Ints]:
        """For each leaf, those with a place in `low .. high` on every axis, as compressed rows."""
        leaf = np.arange(len(self.first))
        node = np.zeros_like(leaf)
        levels = zip(self.least, self.most, self.sizes, low, high, strict=True)
        for least, most, size, lower, upper in levels:
            start = np.searchsorted(most, node * size + lower[leaf])
            stop = np.searchsorted(least, node * size + upper[leaf], side="right")
            counts = stop - start
            leaf = np.repeat(leaf, counts)
            node = np.arange(len(leaf)) + np.repeat(stop - np.cumsum(counts), counts)
        return np.searchsorted(leaf, np.arange(len(self.first) + 1)), node


def _tiles(rules: tuple[AxisRule, ...], axes: tuple[Axis, ...], boxes: Boxes) -> _Tree:
    """For boxes without gaps: equal tiles, most of which see the same."""
    tiles = []
    for axis, side in zip(axes, _sides(rules, boxes), strict=True):
        family, number = np.divmod(axis.place, axis.span)
        tiles.append(family.astype(np.int64) * axis.span + number // side)
    rows = np.lexsort(tiles[::-1])
    begins = list(np.cumsum([_changes(tile[rows]) for tile in tiles], axis=0) > 0)
    return _Tree.of(rows, begins, axes)


def _sides(rules: tuple[AxisRule, ...], boxes: Boxes) -> list[int]:
    """How many neighbours of a residue class a tile has on each axis.

    Tokens of a stride group share their window, so tiles of whole groups compute no hidden pair;
    beyond that, tiles grow in proportion to the window.
    """
    most = [-(-extent // rule.dilation) for rule, extent in zip(rules, boxes.largest, strict=True)]
    sides = [min(rule.stride, size) for rule, size in zip(rules, most, strict=True)]
    while math.prod(sides) > _MOST_CELLS:
        axis = sides.index(max(sides))
        sides[axis] = next(side for side in range(sides[axis] - 1, 0, -1) if not sides[axis] % side)
    while math.prod(sides) < _TOKENS:
        growing = [axis for axis, side in enumerate(sides) if side < most[axis]]
        if not growing:
            break
        sides[min(growing, key=lambda axis: sides[axis] / rules[axis].window)] *= 2
    return sides


def _packs(rules: tuple[AxisRule, ...], axes: tuple[Axis, ...], boxes: Boxes) -> _Tree:
    """For boxes with gaps: blocks of equally many tokens, however dense these lie.

    Cut into slabs on the first axis, each of those on the next, and so on ("sort-tile-recursive",
    Leutenegger, Lopez and Edgington 1997). Slabs hold whole blocks, so that few blocks are short.
    """
    windows = [
        extent / (rule.window * rule.dilation)
        for rule, extent in zip(rules, boxes.largest, strict=True)
    ]
    rows = np.arange(len(boxes.number))
    node, begins = np.zeros_like(rows), []
    for level, axis in enumerate(axes):
        order = np.lexsort((axis.place[rows], node))
        rows, node = rows[order], node[order]
        run = np.flatnonzero(_changes(node) | _changes(axis.place[rows] // axis.span))
        length = np.diff(run, append=len(rows))
        slab = _TOKENS * _blocks_per_slab(length / _TOKENS, windows[level:])
        begin = (np.arange(len(rows)) - np.repeat(run, length)) % np.repeat(slab, length) == 0
        begins.append(begin)
        node = np.cumsum(begin) - 1
    return _Tree.of(rows, begins, axes)


def _blocks_per_slab(blocks: npt.NDArray[np.float64], windows: list[float]) -> Ints:
    """So that blocks have about the proportions of a window.

    `windows` says how many lie side by side on each axis left, the first of which is cut.
    """
    if len(windows) == 1:
        return np.ones(len(blocks), np.int64)
    slabs = windows[0] * (blocks / math.prod(windows)) ** (1 / len(windows))
    return np.ceil(blocks / np.maximum(slabs, 1)).astype(np.int64)


def _changes(values: Ints) -> Bools:
    """Where a value differs from the one before it; always at the first."""
    changes = np.ones(len(values), np.bool_)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes
