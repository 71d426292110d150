"""Block-sparse work as tables: which pieces of the keys each piece of the queries meets."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
import triton.language as tl
from torch import Tensor

from ringspan_triton.interpreting import device

if TYPE_CHECKING:
    import numpy.typing as npt
    from ringspan.contracts import ActiveBlocks

    Ints = npt.NDArray[np.int64]

__all__ = ["Sparse", "entry", "program", "tables"]


class Sparse(NamedTuple):
    """One program for each piece of a block, and what it walks through."""

    programs: Tensor
    """int32 `[programs, 6]`: first row, last + 1, first row of its block; first entry, the first
    that needs a mask, last + 1."""
    entries: Tensor
    """int32 `[entries, 4]`: first row, last + 1, first row of its block, number of the bitmap."""
    bitmaps: Tensor
    longest: int


_tables: WeakKeyDictionary[ActiveBlocks, dict[tuple[torch.device, bool, int, int], Sparse]] = (
    WeakKeyDictionary()
)


def tables(
    blocks: ActiveBlocks, device: torch.device, own: int, other: int, *, by_key: bool
) -> Sparse:
    """The tables for pieces of at most `own` rows that walk through pieces of at most `other`.

    Made and copied to `device` once.

    Args:
        blocks: which blocks of queries see which blocks of keys.
        device: where the kernel runs.
        own: rows of a program.
        other: rows of what it walks through.
        by_key: whether programs have keys of their own and walk through queries.
    """
    made = _tables.setdefault(blocks, {})
    kind = (device, by_key, own, other)
    if kind not in made:
        programs, entries = _numbers(blocks, own, other, by_key=by_key)
        made[kind] = Sparse(
            torch.from_numpy(programs.astype(np.int32)).to(device),
            torch.from_numpy(entries.astype(np.int32)).to(device),
            blocks.on(device)[4],
            blocks.bitmaps.shape[-1],
        )
    return made[kind]


def _numbers(blocks: ActiveBlocks, own: int, other: int, *, by_key: bool) -> tuple[Ints, Ints]:
    """`programs` and `entries` on the host."""
    query = np.repeat(np.arange(len(blocks.indptr) - 1), np.diff(blocks.indptr))
    ours, theirs = (blocks.indices, query) if by_key else (query, blocks.indices)
    pieces = _pieces(blocks.bounds, other)
    # Each pair of blocks, once for each piece of the other block.
    first = np.searchsorted(pieces[:, 3], np.arange(len(blocks.bounds)))
    pair, within = _counted((first[1:] - first[:-1])[theirs])
    met = pieces[first[theirs][pair] + within]
    bitmap = blocks.bitmap[pair]
    # A piece of the keys that is cut off needs a mask, one of the queries does not.
    masked = bitmap >= 0 if by_key else (bitmap >= 0) | (met[:, 1] - met[:, 0] < other)
    order = np.lexsort((met[:, 0], masked, ours[pair]))
    entries = np.column_stack((met[:, :3], bitmap))[order]
    owner, masked = ours[pair][order], masked[order]
    programs = _pieces(blocks.bounds, own)
    block = programs[:, 3]
    start, stop = np.searchsorted(owner, block), np.searchsorted(owner, block, side="right")
    plain = np.append(0, np.cumsum(~masked))
    middle = start + plain[stop] - plain[start]
    # The longest walks first: what begins last should be short.
    longest_first = np.argsort(start - stop, kind="stable")
    numbers = np.column_stack((programs[:, :3], start, middle, stop))
    return numbers[longest_first], entries


def _pieces(bounds: Ints, rows: int) -> Ints:
    """Blocks in pieces: first row, last + 1, first row of the block, number of the block."""
    block, within = _counted(-(-np.diff(bounds) // rows))
    start = bounds[block] + within * rows
    stop = np.minimum(start + rows, bounds[block + 1])
    return np.column_stack((start, stop, bounds[block], block))


def _counted(counts: Ints) -> tuple[Ints, Ints]:
    """`counts[n]` times the number `n`, and for each of them how many came before it.

    Example:
        >>> _counted(np.array([1, 0, 2]))
        (array([0, 2, 2]), array([0, 0, 1]))
    """
    number = np.repeat(np.arange(len(counts)), counts)
    return number, np.arange(len(number)) - np.repeat(np.cumsum(counts) - counts, counts)


@device
def program(sparse, number):
    """A program's rows, first row of its block, and entries."""
    at = sparse.programs + number * 6
    return (
        tl.load(at),
        tl.load(at + 1),
        tl.load(at + 2),
        tl.load(at + 3),
        tl.load(at + 4),
        tl.load(at + 5),
    )


@device
def entry(sparse, number):
    """An entry's rows, first row of its block, and bitmap."""
    at = sparse.entries + number * 4
    return tl.load(at), tl.load(at + 1), tl.load(at + 2), tl.load(at + 3)
