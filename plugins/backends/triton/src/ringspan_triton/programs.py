"""Which part of the work a program of a kernel does, and what it walks through."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

from typing import NamedTuple

import triton.language as tl

from ringspan_triton.interpreting import device
from ringspan_triton.sparse import entry, program

__all__ = ["VARYING", "Sizes", "block_rows", "number", "own_rows", "place", "walks"]


VARYING = ("query_places", "key_places", "visible", "sparse", "drawing", "sizes")
"""Arguments whose numbers differ from call to call: no kernel is compiled anew for them."""


class Sizes(NamedTuple):
    """Of a launch."""

    tiles: int
    groups: int
    group: int
    """Query heads that share a key/value head."""
    queries: int
    """Of a tile."""
    keys: int
    """Of a tile."""
    programs: int
    """Blocks of rows that each have a program, for each head of each tile."""


@device
def place(sizes, members):
    """The program's sequence, tile, group of heads, head among `members` of it, and block.

    Programs that run at about the same time read the same keys.
    """
    pid = tl.program_id(0)
    rest = (pid // sizes.programs).to(tl.int64)
    member = rest % members
    rest = rest // members
    group = rest % sizes.groups
    rest = rest // sizes.groups
    return rest // sizes.tiles, rest % sizes.tiles, group, member, pid % sizes.programs


@device
def own_rows(sparse, block, length, BLOCK: tl.constexpr):
    """A program's first row and last + 1, its rows, and their numbers in a block of the mask."""
    start = block * BLOCK
    stop = tl.minimum(start + BLOCK, length)
    origin = start
    if sparse is not None:
        start, stop, origin, _, _, _ = program(sparse, block)
    row = start + tl.arange(0, BLOCK)
    return start, stop, row, row - origin


@device
def block_rows(sparse, block, length, BLOCK: tl.constexpr):
    """What a program walks through: rows, their numbers in a block of the mask, which of them
    are there, and the number of the bitmap."""
    start = block * BLOCK
    stop = length
    origin = start
    bitmap = start
    if sparse is not None:
        start, stop, origin, bitmap = entry(sparse, block)
    row = start + tl.arange(0, BLOCK)
    return row, row - origin, row < stop, bitmap


@device
def walks(
    sparse, block, start, stop, all_start, all_stop, end, ALL_MASKED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Two walks over blocks: one where no pair is hidden, and one that needs the mask.

    Args:
        sparse: tables that say it, or None.
        block: the program's own, in these tables.
        start: of the span; `stop`, its end; `all_start`, `all_stop`, that of the part within
            which no pair is hidden.
        end: a row here is as good as the end of a block.
        ALL_MASKED: whether the tables' plain blocks need a mask, too.
        BLOCK: rows of a block.

    Returns:
        First block and count of the first walk, then of the second one, which after so many
        blocks passes over so many.
    """
    if sparse is not None:
        _, _, _, first, whole_end, last = program(sparse, block)
        if ALL_MASKED:
            whole_end = first
        whole_first = first
    else:
        first = start // BLOCK
        last = tl.maximum((stop + BLOCK - 1) // BLOCK, first)
        whole_first = tl.maximum(tl.minimum((all_start + BLOCK - 1) // BLOCK, last), first)
        whole_end = tl.where(all_stop >= end, (all_stop + BLOCK - 1) // BLOCK, all_stop // BLOCK)
        whole_end = tl.maximum(tl.minimum(whole_end, last), whole_first)
    whole = whole_end - whole_first
    return whole_first, whole, first, last - first - whole, whole_first - first, whole


@device
def number(x, DTYPE: tl.constexpr):
    """A number that the host gives as the bits of a float64 where the kernel computes in it."""
    bits: tl.constexpr = tl.float64 == DTYPE
    return x.to(tl.int64).to(tl.float64, bitcast=True) if bits else x
