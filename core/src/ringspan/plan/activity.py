"""Which blocks of tokens see which, under any numbering of the tokens by blocks, exactly."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.masks import MaskCase
from ringspan.contracts.pattern import Blocks, Domain, Listed, Pattern
from ringspan.contracts.tokens import Tokens
from ringspan.plan.cells import Batch
from ringspan.plan.cut import cut
from ringspan.plan.holdings import Holdings
from ringspan.plan.lines import listed
from ringspan.plan.orders import order
from ringspan.plan.restart import check_documents
from ringspan.plan.schedule import parts_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.contracts.documents import Documents
    from ringspan.contracts.work import Bitmaps

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
    Words = npt.NDArray[np.uint64]

__all__ = ["Seen"]

_MOST_BYTES = 2**30
"""Of a table with a cell for each pair of blocks."""
_PAIRS_AT_ONCE = 2**20
"""Looked at together: with more, temporary arrays fall out of the processor's caches."""
_WORD = 64
"""Queries whose bits share a word."""


@dataclass(frozen=True, eq=False)
class Seen:
    """All query-key pairs of a pattern over some tokens, found once and counted at will.

    Example:
        >>> from ringspan import Dense
        >>> from ringspan.contracts.tokens import Sequence
        >>> seen = Seen.of(Dense(), Sequence(4), causal=True)
        >>> halves = np.array([0, 0, 1, 1])
        >>> seen.pairs(halves, 2).tolist(), seen.active(halves, 2)
        ([[3, 0], [4, 3]], 3)
    """

    N: int
    heads: int
    batches: tuple[tuple[tuple[int, ...], _Tiles], ...]
    """Batches of tiles, each with the query heads that see it."""
    blocks: Listed | None = None
    """Those that the pattern chooses itself; None: it is not made of blocks."""

    @classmethod
    def of(
        cls,
        pattern: Pattern,
        tokens: Tokens,
        *,
        heads: int = 1,
        kv_heads: int | None = None,
        causal: bool = False,
        documents: Documents | None = None,
    ) -> Seen:
        """What `pattern` lets each of `heads` query heads see.

        `kv_heads` are by default as many as `heads`.

        Raises:
            InvalidArgument: the pattern or the documents do not fit the tokens.
        """
        kv_heads = heads if kv_heads is None else kv_heads
        domain = Domain(tokens, heads, kv_heads, order, documents, causal)
        check_documents(documents, tokens)
        pattern.check(domain)
        everyone = Holdings.some(np.arange(tokens.N), tokens.N)
        parts = [part for _, part in parts_of(pattern, domain)]
        batches = tuple(
            (part.heads, _Tiles.of(batch))
            for part in parts
            for batch in cut(part, everyone, everyone).meet(0, 0, causal=causal)
        )
        chosen = parts and all(isinstance(part, Blocks) for part in parts)
        return cls(tokens.N, heads, batches, parts[0].sets.listed() if chosen else None)

    @property
    def own(self) -> int | None:
        """How many pairs of the blocks that the pattern chooses itself are active."""
        if self.blocks is None:
            return None
        return self.active(self.blocks.numbers(self.N), len(self.blocks.bounds) - 1)

    @cached_property
    def area(self) -> int:
        """Query-key pairs of the first head, with multiplicity."""
        return sum(tiles.area for heads, tiles in self.batches if 0 in heads)

    def pairs(self, numbers: Ints, count: int, head: int = 0) -> Ints:
        """How many pairs of a head lie between blocks, with multiplicity: int64 `[count, count]`.

        Args:
            numbers: for each position, the number of its block, `0 .. count - 1`: int64 `[N]`.
            count: number of blocks.
            head: whose pairs.

        Raises:
            InvalidArgument: there are so many blocks that the table would exceed 1 GiB.
        """
        self._check(numbers, count, np.dtype(np.int64).itemsize)
        counts = np.zeros((count, count), dtype=np.int64)
        for heads, tiles in self.batches:
            if head in heads:
                tiles.count(counts, numbers)
        return counts

    def active(self, numbers: Ints, count: int) -> int:
        """How many pairs of blocks have a query and a key that it sees, for any head.

        Arguments and errors as for `pairs`; a pair of blocks counts once, whichever heads see it.
        """
        return int(np.count_nonzero(self.activity(numbers, count)))

    def activity(self, numbers: Ints, count: int) -> Bools:
        """Whether a query of one block sees a key of another, for any head: `[count, count]`."""
        self._check(numbers, count, np.dtype(np.bool_).itemsize)
        table = np.zeros((count, count), dtype=np.bool_)
        for _, tiles in self.batches:
            tiles.mark(table, numbers)
        return table

    def row(self, position: int, head: int = 0) -> Ints:
        """How often the query at `position` sees each key, for a head: int64 `[N]`."""
        counts = np.zeros(self.N, dtype=np.int64)
        for heads, tiles in self.batches:
            if head in heads:
                np.add.at(counts, tiles.keys_of(position), 1)
        return counts

    def _check(self, numbers: Ints, count: int, bytes_per_cell: int) -> None:
        if count * count * bytes_per_cell > _MOST_BYTES:
            most = int((_MOST_BYTES // bytes_per_cell) ** 0.5)
            raise InvalidArgument(
                "block_size",
                expected=f"at most {most:,} blocks, for every pair of which has a cell of a table",
                got=f"{count:,} blocks of {self.N:,} tokens",
                remedy="Take a larger block_size",
            )
        if numbers.shape != (self.N,) or (
            self.N and not 0 <= int(numbers.min()) <= int(numbers.max()) < count
        ):
            raise InvalidArgument(
                "numbers",
                expected=f"a block in 0 .. {count - 1} for each of {self.N} positions",
                got=f"{numbers.dtype} of shape {list(numbers.shape)}",
            )


@dataclass(frozen=True, eq=False)
class _Tiles:
    """A batch, with what its bitmaps say in a form that is fast to look through."""

    batch: Batch
    words: Words | None
    """Bit `l` of `[bitmap, w, key]` is the query `64 * w + l`; None: there are no bitmaps."""

    @classmethod
    def of(cls, batch: Batch) -> _Tiles:
        return cls(batch, None if batch.seen is None else _words(batch.seen.table))

    @property
    def area(self) -> int:
        """Pairs that are seen."""
        if self.batch.seen is not None:
            sums = self.batch.seen.table.sum(axis=(1, 2))
            return int(sums[self.batch.seen.which].sum())
        low, high = _intervals(self.batch)
        return int((high - low).sum())

    def keys_of(self, position: int) -> Ints:
        """The keys that a query sees."""
        key = listed(self.batch.key)
        tile, row = np.nonzero(listed(self.batch.query) == position)
        if self.batch.seen is not None:
            shown = self.batch.seen.table[self.batch.seen.which[tile], row]
        else:
            number = np.arange(key.shape[1])
            low, high = (bound[tile, row, None] for bound in _intervals(self.batch))
            shown = (low <= number) & (number < high)
        seen: Ints = key[tile][shown]
        return seen

    def count(self, counts: Ints, numbers: Ints) -> None:
        """Adds the pairs between blocks to `counts`."""
        query, key = (numbers[listed(rows)] for rows in (self.batch.query, self.batch.key))
        if self.batch.seen is None:
            _count_intervals(counts, query, key, *_intervals(self.batch))
        else:
            _count_bitmaps(counts, query, key, self.batch.seen)

    def mark(self, table: Bools, numbers: Ints) -> None:
        """Makes `table` True where one block sees another."""
        query, key = (numbers[listed(rows)] for rows in (self.batch.query, self.batch.key))
        if self.words is None or self.batch.seen is None:
            if self.batch.mask is MaskCase.FULL:
                # Nobody minds their order, and equal ones together are looked at once.
                key = np.sort(key, axis=1)
            _mark_intervals(table, query, key, *_intervals(self.batch))
        else:
            _mark_bitmaps(table, query, key, self.words, self.batch.seen.which)


def _intervals(batch: Batch) -> tuple[Ints, Ints]:
    """The keys `low .. high - 1` of its tile that each query sees, `[T, Lq]` each."""
    if batch.low is not None and batch.high is not None:
        return batch.low, batch.high
    low: Ints = np.zeros(batch.query.shape, dtype=np.int64)
    row, keys = np.arange(low.shape[1]), batch.key.shape[1]
    if batch.mask is MaskCase.CAUSAL:
        return low, low + row + 1
    if batch.mask is MaskCase.BAND:
        first, last = row - batch.left, row + batch.right + 1
        return low + np.maximum(first, 0), low + np.minimum(last, keys)
    return low, low + keys


def _count_intervals(counts: Ints, query: Ints, key: Ints, low: Ints, high: Ints) -> None:
    """Pairs where queries see runs of keys; all as blocks, `[T, Lq]` or `[T, Lk]`."""
    tile = np.arange(len(key))[:, None] * key.shape[1]
    by_block = np.argsort(query, axis=None, kind="stable")
    low, high = ((tile + bound).ravel()[by_block] for bound in (low, high))
    rows, starts = np.unique(query.ravel()[by_block], return_index=True)
    ends = np.append(starts[1:], query.size)
    for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True):
        first, last = low[start:end].min(), high[start:end].max()
        begun, ended = (
            np.bincount(bound[start:end] - first, minlength=last - first + 1)
            for bound in (low, high)
        )
        times = np.cumsum(begun - ended)[:-1]
        # Whole numbers far below 2**53: as weights they are exact.
        seen = np.bincount(key.ravel()[first:last], times, minlength=len(counts))
        counts[row] += seen.astype(np.int64)


def _count_bitmaps(counts: Ints, query: Ints, key: Ints, seen: Bitmaps) -> None:
    """Pairs where bitmaps say which keys a query sees."""
    step = max(1, _PAIRS_AT_ONCE // (query.shape[1] * key.shape[1]))
    for start in range(0, len(query), step):
        tiles = slice(start, start + step)
        pair = query[tiles, :, None] * len(counts) + key[tiles, None, :]
        np.add.at(counts.reshape(-1), pair[seen.table[seen.which[tiles]]], 1)


def _mark_intervals(table: Bools, query: Ints, key: Ints, low: Ints, high: Ints) -> None:
    """Blocks where queries see runs of keys; all as blocks, `[T, Lq]` or `[T, Lk]`."""
    tile = np.arange(len(key))[:, None] * key.shape[1]
    sees = low < high
    flat = key.reshape(-1)
    begins = np.ones(flat.size, dtype=np.bool_)
    begins[1:] = flat[1:] != flat[:-1]
    run, block = np.cumsum(begins) - 1, flat[begins]
    row, first, beyond = _merged(
        query[sees], run[(tile + low)[sees]], run[(tile + high)[sees] - 1] + 1, len(block)
    )
    # A long run of keys is not gone through again for each block of queries that sees it.
    long = beyond - first > len(table)
    _mark_each(table, row[~long], first[~long], beyond[~long], block)
    _mark_swept(table, row[long], first[long], beyond[long], block)


def _merged(row: Ints, first: Ints, beyond: Ints, size: int) -> tuple[Ints, Ints, Ints]:
    """Intervals of `0 .. size` of each row, united where they meet."""
    base = row * (size + 1)
    by_start = np.argsort(base + first, kind="stable")
    start = (base + first)[by_start]
    reached = np.maximum.accumulate((base + beyond)[by_start])
    new = np.ones(len(start), dtype=np.bool_)
    new[1:] = start[1:] > reached[:-1]
    at = np.flatnonzero(new)
    last = np.append(at[1:], len(start))[: len(at)] - 1
    row, first = np.divmod(start[at], size + 1)
    return row, first, reached[last] - row * (size + 1)


def _mark_each(table: Bools, row: Ints, first: Ints, beyond: Ints, block: Ints) -> None:
    """Marks the blocks `first .. beyond - 1` for each row, one by one."""
    flat, length = table.reshape(-1), beyond - first
    ends = np.cumsum(length)
    for some in _chunks(ends):
        at = np.arange(length[some].sum()) + np.repeat(
            first[some] - ends[some] + length[some] + (ends[some] - length[some])[0], length[some]
        )
        flat[np.repeat(row[some] * len(table), length[some]) + block[at]] = True


def _chunks(ends: Ints) -> Iterator[slice]:
    """Consecutive items of about so many pairs together, from the sums of pairs up to each."""
    start = done = 0
    while start < len(ends):
        stop = max(start + 1, int(np.searchsorted(ends, done + _PAIRS_AT_ONCE, side="right")))
        yield slice(start, stop)
        start, done = stop, int(ends[stop - 1])


def _mark_swept(table: Bools, row: Ints, first: Ints, beyond: Ints, block: Ints) -> None:
    """The same where there are more keys than blocks: by where each block occurs last."""
    last = np.full(len(table), -1, dtype=np.int64)
    done = 0
    for at in np.argsort(beyond, kind="stable").tolist():
        end = int(beyond[at])
        last[block[done:end]] = np.arange(done, end)
        done = end
        table[row[at]] |= last >= first[at]


def _words(table: Bools) -> Words:
    """Bitmaps `[U, Lq, Lk]` with 64 queries in a word, `[U, ceil(Lq / 64), Lk]`."""
    count, queries, keys = table.shape
    words = -(-queries // _WORD)
    octets = np.zeros((count, words * _WORD // 8, keys), dtype=np.uint8)
    packed = np.packbits(table, axis=1, bitorder="little")
    octets[:, : packed.shape[1]] = packed
    together = octets.reshape(count, words, _WORD // 8, keys).transpose(0, 1, 3, 2)
    joined: Words = np.ascontiguousarray(together).view("<u8")[..., 0].astype(np.uint64, copy=False)
    return joined


def _mark_bitmaps(table: Bools, query: Ints, key: Ints, words: Words, which: Ints) -> None:
    """Blocks where bitmaps say which keys a query sees.

    The queries of a tile that are in one block are looked at together, 64 to a word.
    """
    tile, word, row, bits = _queries_by_block(query, len(table))
    flat, step = table.reshape(-1), max(1, _PAIRS_AT_ONCE // key.shape[1])
    for start in range(0, len(tile), step):
        some = slice(start, start + step)
        hit = (words[which[tile[some]], word[some]] & bits[some, None]) != 0
        entry, at = np.nonzero(hit)
        flat[row[some][entry] * len(table) + key[tile[some][entry], at]] = True


def _queries_by_block(query: Ints, count: int) -> tuple[Ints, Ints, Ints, Words]:
    """The queries of each tile and word that are in one block, as bits of that word."""
    tiles, queries = query.shape
    number = np.arange(queries)
    words = -(-queries // _WORD)
    group = (np.arange(tiles)[:, None] * words + number // _WORD) * count + query
    bit = np.broadcast_to(np.uint64(1) << (number % _WORD).astype(np.uint64), query.shape)
    by_group = np.argsort(group, axis=None, kind="stable")
    groups, first = np.unique(group.reshape(-1)[by_group], return_index=True)
    bits = np.bitwise_or.reduceat(bit.reshape(-1)[by_group], first)
    place, row = np.divmod(groups, count)
    tile, word = np.divmod(place, words)
    return tile, word, row, bits
