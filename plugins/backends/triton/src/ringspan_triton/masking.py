"""Which keys a query sees, and which blocks of them no query of a block sees."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

from typing import NamedTuple

import triton.language as tl
from torch import Tensor

from ringspan_triton.interpreting import device, largest, smallest
from ringspan_triton.places import Lying

__all__ = ["Bitmap", "Bounds", "Visible", "key_span", "query_span", "row_bounds", "seen_pairs"]


class Bounds(NamedTuple):
    """Interval masks: query `l` sees the keys `low .. high - 1`."""

    low: Tensor
    low_strides: tuple[int, int, int, int, int]
    """By sequence, tile, group of heads, head of the group, and row."""
    high: Tensor
    high_strides: tuple[int, int, int, int, int]


class Bitmap(NamedTuple):
    """Bitmaps: query `l` sees key `m` where `seen` is True."""

    seen: Tensor
    strides: tuple[int, int, int, int, int, int]
    """By sequence, tile (or number of the bitmap), group, head of the group, query and key."""
    which: Tensor | None
    """The number of each tile's bitmap."""


class Visible(NamedTuple):
    """A mask. Full ones have none of these, and bands have numbers."""

    left: int
    right: int
    bounds: Bounds | None
    bitmap: Bitmap | None
    padding: Lying | None
    """Which keys are there, by sequence, row of the whole tensor and group of heads."""


@device
def _bound_pointers(visible, at):
    """Where the bounds of a tile's first query stand."""
    batch, tile, group, member, _, _ = at
    low = visible.bounds.low_strides
    high = visible.bounds.high_strides
    return (
        visible.bounds.low + batch * low[0] + tile * low[1] + group * low[2] + member * low[3],
        visible.bounds.high + batch * high[0] + tile * high[1] + group * high[2] + member * high[3],
    )


@device
def row_bounds(visible, at, row, inside, CASE: tl.constexpr):
    """The interval of each query; rows that are not `inside` see nothing."""
    low = row
    high = row
    if CASE == "interval":
        at_low, at_high = _bound_pointers(visible, at)
        low = tl.load(at_low + row * visible.bounds.low_strides[4], mask=inside, other=0)
        high = tl.load(at_high + row * visible.bounds.high_strides[4], mask=inside, other=0)
    return low.to(tl.int32), high.to(tl.int32)


@device
def seen_pairs(visible, sparse, bitmap, at, i, j, i_in_block, j_in_block, low, high, inside,
               CASE: tl.constexpr):  # fmt: skip
    """Whether query `i` sees key `j`, where all that is given broadcasts.

    `inside` says what is there at all; `low` and `high` are the intervals of the queries.
    """
    batch, tile, group, member, _, _ = at
    seen = inside
    if CASE == "band":
        seen = seen & (j >= i - visible.left) & (j <= i + visible.right)
    if CASE == "interval":
        seen = seen & (j >= low) & (j < high)
    if CASE == "blocks":
        length = sparse.longest.to(tl.int64)
        corner = sparse.bitmaps + bitmap.to(tl.int64) * length * length
        there = corner + i_in_block * length + j_in_block
        seen = seen & (tl.load(there, mask=inside & (bitmap >= 0), other=1) != 0)
    if CASE == "bitmap":
        strides = visible.bitmap.strides
        if visible.bitmap.which is not None:
            tile = tl.load(visible.bitmap.which + tile).to(tl.int64)
        start = visible.bitmap.seen + batch * strides[0] + tile * strides[1]
        start += group * strides[2] + member * strides[3]
        there = start + i.to(tl.int64) * strides[4] + j * strides[5]
        seen = seen & (tl.load(there, mask=inside, other=0) != 0)
    return seen


@device
def key_span(visible, first, last, keys, low, high, inside, CASE: tl.constexpr):
    """The keys that any of the queries `first .. last - 1` sees, and those that all of them see.

    Returns four bounds: from, to, from where by all, to where by all.
    """
    if CASE == "band":
        start = tl.maximum(first - visible.left, 0)
        stop = tl.minimum(last + visible.right, keys)
        all_start = tl.maximum(last - 1 - visible.left, 0)
        all_stop = tl.minimum(first + visible.right + 1, keys)
    elif CASE == "interval":
        some = inside & (low < high)
        start = tl.maximum(smallest(tl.where(some, low, keys), 0), 0)
        stop = tl.minimum(largest(tl.where(some, high, 0), 0), keys)
        all_start = tl.maximum(largest(tl.where(inside, low, 0), 0), 0)
        all_stop = tl.minimum(smallest(tl.where(inside, high, keys), 0), keys)
    else:
        start = first * 0
        stop = start + keys
        all_start = start
        all_stop = stop
    if CASE == "bitmap" or visible.padding is not None:
        all_stop = all_start
    return start, stop, all_start, all_stop


@device
def query_span(visible, at, first, last, queries, CASE: tl.constexpr):
    """The queries that see any of the keys `first .. last - 1`, and those that see all of them.

    Returns four bounds: from, to, from where all, to where all.
    """
    if CASE == "band":
        start = tl.maximum(first - visible.right, 0)
        stop = tl.minimum(last + visible.left, queries)
        all_start = tl.maximum(last - 1 - visible.right, 0)
        all_stop = tl.minimum(first + visible.left + 1, queries)
    elif CASE == "interval":
        # Both bounds ascend from query to query.
        low, high = _bound_pointers(visible, at)
        low_step = visible.bounds.low_strides[4]
        high_step = visible.bounds.high_strides[4]
        start = _first_above(high, high_step, first, queries)
        stop = _first_above(low, low_step, last - 1, queries)
        all_start = _first_above(high, high_step, last - 1, queries)
        all_stop = _first_above(low, low_step, first, queries)
    else:
        start = first * 0
        stop = start + queries
        all_start = start
        all_stop = stop
    if CASE == "bitmap" or visible.padding is not None:
        all_stop = all_start
    return start, stop, all_start, all_stop


@device
def _first_above(bound, step, limit, count):
    """The first of `count` ascending numbers that is above `limit`; `count` if none is."""
    below = limit * 0
    above = below + count
    while below < above:
        middle = (below + above) // 2
        higher = tl.load(bound + middle.to(tl.int64) * step).to(tl.int32) > limit
        above = tl.where(higher, middle, above)
        below = tl.where(higher, below, middle + 1)
    return below
