"""Cuts sets of tokens by the ranks that hold them, and lets two ranks' parts meet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.masks import MaskCase
from ringspan.contracts.pattern import Cliques

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["Batch", "Cut"]


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Tiles of equal lengths and one mask case, in positions."""

    heads: tuple[int, ...]
    query: Ints
    """`[T, Lq]`"""
    key: Ints
    """`[T, Lk]`"""
    mask: MaskCase
    high: Ints | None
    """`[T, Lq]` for `INTERVAL`: how many leading keys each query sees."""


@dataclass(frozen=True, slots=True, eq=False)
class _Spans:
    """Per tile, a run of `rows`: `rows[start : start + length]`."""

    start: Ints
    length: Ints

    def __getitem__(self, keep: npt.NDArray[np.bool_]) -> _Spans:
        return _Spans(self.start[keep], self.length[keep])

    def flat(self) -> Ints:
        """The indices of all runs, one after the other."""
        ends = np.cumsum(self.length)
        shift = np.repeat(self.start - (ends - self.length), self.length)
        flat: Ints = np.arange(len(shift)) + shift
        return flat


class Cut:
    """The sets of one `Cliques`, each cut into the parts that the ranks hold."""

    def __init__(self, cliques: Cliques, owner: Ints, world_size: int) -> None:
        tiles = len(cliques.bounds) - 1
        self.heads = cliques.heads
        self.rows = cliques.rows
        if world_size == 1:
            self._bounds = cliques.bounds[:, None]
            self._starts, self._ends = self._bounds[:-1], self._bounds[1:]
            return
        part = np.repeat(np.arange(tiles) * world_size, np.diff(cliques.bounds))
        part = part + owner[cliques.rows]
        if (np.diff(part) < 0).any():
            # Stable, so that rows stay in order of position within a part.
            by_part = np.argsort(part, kind="stable")
            self.rows, part = cliques.rows[by_part], part[by_part]
        edges = np.searchsorted(part, np.arange(tiles * world_size + 1))
        self._starts = edges[:-1].reshape(tiles, world_size)
        self._ends = edges[1:].reshape(tiles, world_size)

    def _held(self, rank: int) -> _Spans:
        return _Spans(self._starts[:, rank], self._ends[:, rank] - self._starts[:, rank])

    def meet(self, query_rank: int, key_rank: int, *, causal: bool) -> Iterator[Batch]:
        """Batches of tiles between the queries of one rank and the keys of another.

        Rows that see nothing, and keys that nobody sees, are trimmed away.
        """
        query, key = self._held(query_rank), self._held(key_rank)
        keep = (query.length > 0) & (key.length > 0)
        query, key = query[keep], key[keep]
        if not causal:
            yield from self._batches(query, key, MaskCase.FULL)
        elif query_rank == key_rank:
            yield from self._batches(query, key, MaskCase.CAUSAL)
        else:
            yield from self._causal_batches(query, key)

    def _causal_batches(self, query: _Spans, key: _Spans) -> Iterator[Batch]:
        if not len(query.start):
            return
        first_query = self.rows[query.start]
        last_query = self.rows[query.start + query.length - 1]
        first_key = self.rows[key.start]
        last_key = self.rows[key.start + key.length - 1]
        full = last_key < first_query
        yield from self._batches(query[full], key[full], MaskCase.FULL)
        mixed = ~full & (first_key < last_query)
        yield from self._mixed_batches(query[mixed], key[mixed])

    def _mixed_batches(self, query: _Spans, key: _Spans) -> Iterator[Batch]:
        """Tiles whose causal border is a staircase."""
        if not len(query.start):
            return
        high = self._visible(query, key)
        bounds = np.concatenate([[0], np.cumsum(query.length)])
        blind = np.add.reduceat(high == 0, bounds[:-1])
        last = high[bounds[1:] - 1]
        seeing = bounds[:-1] + blind
        query = _Spans(query.start + blind, query.length - blind)
        key = _Spans(key.start, last)
        full = high[seeing] == last
        yield from self._batches(query[full], key[full], MaskCase.FULL)
        stairs = ~full
        yield from self._batches(
            query[stairs], key[stairs], MaskCase.INTERVAL, high, seeing[stairs]
        )

    def _visible(self, query: _Spans, key: _Spans) -> Ints:
        """For each query row, how many keys of its tile have no later position."""
        tiles = np.arange(len(query.start))
        beyond = int(self.rows.max()) + 1
        keys = self.rows[key.flat()] + np.repeat(tiles, key.length) * beyond
        queries = self.rows[query.flat()] + np.repeat(tiles, query.length) * beyond
        before = np.cumsum(key.length) - key.length
        return np.searchsorted(keys, queries, side="right") - np.repeat(before, query.length)

    def _batches(
        self,
        query: _Spans,
        key: _Spans,
        case: MaskCase,
        high: Ints | None = None,
        high_start: Ints | None = None,
    ) -> Iterator[Batch]:
        """Groups tiles of equal lengths."""
        if not len(query.start):
            return
        lengths, which = np.unique(
            np.stack([query.length, key.length], axis=-1), axis=0, return_inverse=True
        )
        for group, (query_length, key_length) in enumerate(lengths.tolist()):
            chosen = which.reshape(-1) == group
            steps = np.arange(query_length)
            visible = None
            group_case = case
            if high is not None and high_start is not None:
                visible = high[high_start[chosen, None] + steps]
                if query_length == key_length and (visible == steps + 1).all():
                    group_case, visible = MaskCase.CAUSAL, None
            yield Batch(
                self.heads,
                self.rows[query.start[chosen, None] + steps],
                self.rows[key.start[chosen, None] + np.arange(key_length)],
                group_case,
                visible,
            )
