"""Cuts the parts of a pattern by the ranks that hold them, and lets two ranks' pieces meet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.masks import MaskCase
from ringspan.contracts.pattern import (
    Blocks,
    Cliques,
    Listed,
    Part,
    Runs,
    Windows,
)
from ringspan.plan.cells import Batch, Cells
from ringspan.plan.holdings import Holdings, counted

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["Cut", "cut", "spares_intervals"]

_FEWEST_ROWS, _MOST_ROWS = 64, 1024
"""Query rows of a window's tile: about half as many as a query sees, within these bounds."""
_STAIRS = 8
"""Pieces of a staircase: one rectangle is twice its area, so many together an eighth more."""


class Cut(ABC):
    """One part, cut into the pieces that the ranks hold."""

    def __init__(self, queries: Holdings, keys: Holdings) -> None:
        self._queries, self._keys = queries, keys

    @abstractmethod
    def cells(self, query_rank: int, key_rank: int, *, causal: bool) -> Cells:
        """What the queries of one rank see of the keys of another, set by set."""

    @abstractmethod
    def meet(self, query_rank: int, key_rank: int, *, causal: bool) -> Iterator[Batch]:
        """The same as batches of tiles."""


class _CliquesCut(Cut):
    def __init__(self, part: Cliques, queries: Holdings, keys: Holdings) -> None:
        super().__init__(queries, keys)
        self._sets = part.sets.listed().ascending()
        self._stairs = queries is not keys or not spares_intervals(part, keys)

    @cached_property
    def _stored(self) -> tuple[Listed, Listed]:
        """The sets as queries and as keys, in the order in which they are stored."""
        return self._queries.stored(self._sets), self._keys.stored(self._sets)

    def cells(self, query_rank: int, key_rank: int, *, causal: bool) -> Cells:
        # What everyone sees needs no order of position: rows that lie evenly stay a view.
        query_sets, key_sets = (self._sets, self._sets) if causal else self._stored
        cells = self._cells(query_sets, key_sets, query_rank, key_rank)
        return cells.causal() if causal else cells

    def _cells(self, query_sets: Listed, key_sets: Listed, query_rank: int, key_rank: int) -> Cells:
        query, _ = self._queries.held(query_sets, query_rank)
        key, _ = self._keys.held(key_sets, key_rank)
        return Cells(query, key)

    def meet(self, query_rank: int, key_rank: int, *, causal: bool) -> Iterator[Batch]:
        if causal and query_rank == key_rank and self._queries is self._keys:
            for batch in self._cells(self._sets, self._sets, query_rank, key_rank).batches():
                yield Batch(batch.query, batch.key, MaskCase.CAUSAL)
        else:
            cells = self.cells(query_rank, key_rank, causal=causal)
            yield from cells.batches(**self._pieces(cells))

    def _pieces(self, cells: Cells) -> dict[str, int]:
        if self._stairs:
            longest = int(np.diff(cells.query.bounds).max(initial=0))
            rows = max(_FEWEST_ROWS, -(-longest // _STAIRS))
            return {"rows": rows, "alike": rows}
        # A run of queries holds no key of another rank, so all of it sees the same keys.
        return {"alike": 1} if self._queries.few_runs else {}


class _WindowsCut(Cut):
    def __init__(self, part: Windows, queries: Holdings, keys: Holdings) -> None:
        super().__init__(queries, keys)
        self._sets = part.sets.listed()
        self._step = part.sets.step if isinstance(part.sets, Runs) else None
        self._low, self._high = part.low, part.high
        self._ascends = self._sets.ascending() is self._sets
        width = int((part.high - part.low).max(initial=1))
        self._rows = 1 << int(np.clip(width // 2, _FEWEST_ROWS, _MOST_ROWS) - 1).bit_length()

    def cells(self, query_rank: int, key_rank: int, *, causal: bool) -> Cells:
        query, mine = self._queries.held(self._sets, query_rank)
        key, theirs = self._keys.held(self._sets, key_rank)
        low, high = self._low, self._high
        if theirs is not None:
            before = counted(theirs)
            start = np.repeat(self._sets.bounds[:-1], np.diff(self._sets.bounds))
            low, high = (before[start + bound] - before[start] for bound in (low, high))
        if mine is not None:
            low, high = low[mine], high[mine]
        evenly = mine is None and theirs is None
        cells = Cells(query, key, low, high, step=self._step if evenly else None)
        if not causal:
            return cells
        return cells.causal() if self._ascends else cells.causal_in_any_order()

    def meet(self, query_rank: int, key_rank: int, *, causal: bool) -> Iterator[Batch]:
        yield from self.cells(query_rank, key_rank, causal=causal).batches(self._rows)


class _BlocksCut(Cut):
    def __init__(self, part: Blocks, queries: Holdings, keys: Holdings) -> None:
        super().__init__(queries, keys)
        sets = part.sets.listed()
        self._query = sets
        self._key = _keys_of(sets, part.indptr, part.indices)
        if part.seen is None:
            self._query, self._key = self._query.ascending(), self._key.ascending()
        self._seen = part.seen

    def cells(self, query_rank: int, key_rank: int, *, causal: bool) -> Cells:
        query, _ = self._queries.held(self._query, query_rank)
        key, _ = self._keys.held(self._key, key_rank)
        cells = Cells(query, key, seen=self._seen)
        if not causal:
            return cells
        # Where every pair is looked at anyway, rows stay as they are stored.
        return cells.causal() if self._seen is None else cells.causal_in_any_order()

    def meet(self, query_rank: int, key_rank: int, *, causal: bool) -> Iterator[Batch]:
        yield from self.cells(query_rank, key_rank, causal=causal).batches()


def _keys_of(sets: Listed, indptr: Ints, indices: Ints) -> Listed:
    """For each block, the tokens of all blocks that it sees."""
    seen = sets.chosen(indices)
    return Listed(seen.rows, seen.bounds[indptr])


def cut(part: Part, queries: Holdings, keys: Holdings) -> Cut:
    """`part` between these holders of queries and of keys."""
    if isinstance(part, Cliques):
        return _CliquesCut(part, queries, keys)
    if isinstance(part, Windows):
        return _WindowsCut(part, queries, keys)
    return _BlocksCut(part, queries, keys)


def spares_intervals(part: Part, holdings: Holdings) -> bool:
    """Whether causality leaves rectangles and triangles only, between any two of the ranks."""
    if not isinstance(part, Cliques):
        return False
    return holdings.few_runs or (holdings.dealt and isinstance(part.sets, Runs))
