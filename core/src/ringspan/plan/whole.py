"""Block-sparse attention as one tile with compressed rows of blocks, for kernels that take it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.blocks import ActiveBlocks
from ringspan.contracts.masks import MaskCase
from ringspan.contracts.pattern import Blocks, Domain, Part, bounds_of
from ringspan.contracts.work import Affine, Indexed, Tiles
from ringspan.plan.cells import PAIRS_AT_ONCE, distinct
from ringspan.plan.holdings import Holdings

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

__all__ = ["Whole", "whole_of"]


class Whole:
    """The parts of a block-sparse pattern, put into compressed rows when a kernel asks for them."""

    def __init__(self, parts: Sequence[Blocks], domain: Domain, holdings: Holdings) -> None:
        self._parts, self._domain, self._holdings = parts, domain, holdings

    @cached_property
    def tiles(self) -> tuple[Tiles, ...]:
        """One tile per part: all rows, in the order of its blocks."""
        return tuple(self._tile(part, index == 0) for index, part in enumerate(self._parts))

    def _tile(self, part: Blocks, first: bool) -> Tiles:
        domain = self._domain
        group, N = domain.heads // domain.kv_heads, domain.N
        stored = self._holdings.rows(part.sets.listed().rows)
        heads = range(0, domain.heads, group)
        rows: Affine | Indexed = Affine(0, 0, 0, 1)
        if not np.array_equal(stored, np.arange(N)):
            rows = Indexed(np.broadcast_to(stored, (1, len(heads), N)).copy())
        return Tiles(
            count=1,
            query_length=N,
            key_length=N,
            query=rows,
            query_heads=tuple(heads),
            key=rows,
            key_heads=tuple(range(domain.kv_heads)),
            group=group,
            mask=MaskCase.FULL,
            blocks=_active(part, causal=domain.causal),
            forward_first=first,
            backward_first=first,
            key_first=first,
        )


def whole_of(parts: Sequence[tuple[int, Part]], domain: Domain, holdings: Holdings) -> Whole | None:
    """The parts as a whole, where all are blocks of every token for all heads; on one rank."""
    everyone = tuple(range(domain.heads))
    blocks = [
        part
        for _, part in parts
        if isinstance(part, Blocks)
        and tuple(sorted(part.heads)) == everyone
        and part.sets.size == domain.N
    ]
    return Whole(blocks, domain, holdings) if blocks and len(blocks) == len(parts) else None


def _active(part: Blocks, *, causal: bool) -> ActiveBlocks:
    sets = part.sets.listed()
    query = np.repeat(np.arange(len(part.indptr) - 1), np.diff(part.indptr))
    key = part.indices
    if part.seen is None and not causal:
        nothing = np.zeros((0, 0, 0), dtype=np.bool_)
        everything = np.full(len(key), -1, dtype=np.int64)
        return ActiveBlocks(sets.bounds, part.indptr, key, everything, nothing)
    lengths = np.diff(sets.bounds)
    longest = int(lengths.max(initial=1))
    place = np.arange(longest)
    there = place < lengths[:, None]
    tokens = sets.rows[np.minimum(sets.bounds[:-1, None] + place, len(sets.rows) - 1)]
    packed, whole = [], []
    step = max(1, PAIRS_AT_ONCE // longest**2)
    for first in range(0, len(key), step):
        i, j = query[first : first + step], key[first : first + step]
        at, seen_by = tokens[i][:, :, None], tokens[j][:, None, :]
        possible = there[i][:, :, None] & there[j][:, None, :]
        seen = possible.copy() if part.seen is None else possible & part.seen(at, seen_by)
        if causal:
            seen &= seen_by <= at
        whole.append((seen == possible).all(axis=(1, 2)))
        packed.append(np.packbits(seen.reshape(len(i), -1), axis=1))
    return _compressed(sets.bounds, query, key, packed, whole, longest)


def _compressed(
    bounds: Ints,
    query: Ints,
    key: Ints,
    packed: list[npt.NDArray[np.uint8]],
    whole: list[Bools],
    longest: int,
) -> ActiveBlocks:
    """Pairs in which nothing is seen leave; equal bitmaps are stored once."""
    if not packed:
        nothing = np.zeros((0, longest, longest), dtype=np.bool_)
        return ActiveBlocks(bounds, np.zeros(len(bounds), np.int64), key, key, nothing)
    bits, all_seen = np.concatenate(packed), np.concatenate(whole)
    kept = all_seen | bits.any(axis=1)
    partial = np.flatnonzero(kept & ~all_seen)
    which, first = distinct(bits[partial])
    bitmap = np.full(len(key), -1, dtype=np.int64)
    bitmap[partial] = which
    table = np.unpackbits(bits[partial[first]], axis=1, count=longest**2).astype(np.bool_)
    counts = np.bincount(query[kept], minlength=len(bounds) - 1)
    return ActiveBlocks(
        bounds,
        bounds_of(counts),
        key[kept],
        bitmap[kept],
        table.reshape(-1, longest, longest),
    )
