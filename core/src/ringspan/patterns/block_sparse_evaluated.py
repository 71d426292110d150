"""Which block sees which, by predicates that were evaluated for one number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.held import Held
from ringspan.contracts.pattern import Blocks, Listed, Runs
from ringspan.contracts.tokens import Tokens
from ringspan.patterns.integers import checked_integer

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
    Bytes = npt.NDArray[np.uint8]
    Predicate = Callable[[Any, Any], Any]

__all__ = ["EvaluatedBlocks"]

_PAIRS_AT_ONCE = 2**22


class EvaluatedBlocks(Held):
    """Pairs of blocks in compressed rows, and a bitmap for each that is seen in part.

    For `N` tokens in blocks of `block_size`: block `i` sees the blocks
    `indices[indptr[i] : indptr[i + 1]]`, ascending. The pairs that `partial` marks have, in
    order, a row of `bitmaps`: a bit for each query and key, packed, query by query. `points`
    are the coordinates that a predicate was evaluated on, `[N, axes]`; `[0, 0]` without any.
    """

    __slots__ = ()
    kind: ClassVar[str] = "blocks"

    def __init__(
        self,
        N: int,
        block_size: int,
        indptr: Ints,
        indices: Ints,
        partial: Bools,
        bitmaps: Bytes,
        points: Ints,
    ) -> None:
        self._hold(np.array([N, block_size]), indptr, indices, partial, bitmaps, points)

    @classmethod
    def from_blocks(cls, block_size: int, predicate: Predicate, N: int) -> EvaluatedBlocks:
        """From a predicate of block numbers."""
        N = checked_integer("N", N, least=0)
        block_size = checked_integer("block_size", block_size)
        blocks = np.arange(-(-N // block_size))
        chunks = _slices(len(blocks), len(blocks))
        rows = (
            _Rows.whole(_evaluated(predicate, blocks[some, None], blocks[None])) for some in chunks
        )
        return cls._joined(N, block_size, rows)

    @classmethod
    def from_mask(
        cls, block_size: int, predicate: Predicate, N: int, points: Ints | None
    ) -> EvaluatedBlocks:
        """From a predicate of positions, or of points, `[N, axes]`."""
        N = checked_integer("N", N, least=0)
        block_size = checked_integer("block_size", block_size)
        tokens = np.arange(N) if points is None else np.ascontiguousarray(points.T)

        def seen(queries: Ints) -> Bools:
            found = [
                _evaluated(predicate, queries[..., some, None], tokens[..., None, :])
                for some in _slices(queries.shape[-1], N)
            ]
            return np.concatenate(found)

        side = _side(N, block_size)
        rows = (_Rows.of(seen(tokens[..., some]), side) for some in _slices(N, N, side))
        return cls._joined(N, block_size, rows, points)

    @classmethod
    def _joined(
        cls, N: int, block_size: int, rows: Iterable[_Rows], points: Ints | None = None
    ) -> EvaluatedBlocks:
        none = np.zeros((0, -(-(_side(N, block_size) ** 2) // 8)), np.uint8)
        found = [_Rows.whole(np.zeros((0, 0), np.bool_)), *rows]
        bitmaps = [none if part.bitmaps is None else part.bitmaps for part in found]
        return cls(
            N,
            block_size,
            np.append(0, np.cumsum(np.concatenate([part.lengths for part in found]))),
            np.concatenate([part.indices for part in found]),
            np.concatenate([part.partial for part in found]),
            np.concatenate(bitmaps),
            np.zeros((0, 0), np.int64) if points is None else points,
        )

    def fits(self, tokens: Tokens) -> bool:
        """Whether these have no coordinates, or those of the predicate where it took any."""
        points = tokens.coordinates
        return points is None or not self.points.size or np.array_equal(points, self.points)

    @property
    def N(self) -> int:  # noqa: N802 - the field's name for the number of tokens
        """For how many tokens."""
        return int(self.arrays[0][0])

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return int(self.arrays[0][1])

    @property
    def indptr(self) -> Ints:
        """Where each block's row of `indices` begins, and the end of the last."""
        return self.arrays[1]

    @property
    def indices(self) -> Ints:
        """The blocks seen."""
        return self.arrays[2]

    @property
    def partial(self) -> Bools:
        """Which of `indices` are seen in part."""
        return self.arrays[3]

    @property
    def bitmaps(self) -> Bytes:
        """What is seen of those."""
        return self.arrays[4]

    @property
    def points(self) -> Ints:
        """The coordinates that the predicate was evaluated on."""
        return self.arrays[5]

    def parts(self, heads: tuple[int, ...]) -> Iterator[Blocks]:
        """The whole pairs, and those in part: so that the former need no bitmap."""
        start = np.arange(0, self.N, self.block_size)
        sets = Runs(start, np.minimum(self.N - start, self.block_size))
        for partial in (False, True):
            chosen = self.partial == partial
            if chosen.any():
                indptr = np.append(0, np.cumsum(chosen))[self.indptr]
                seen = _Bits.of(self, chosen) if partial else None
                yield Blocks(heads, sets, indptr, self.indices[chosen], seen)

    def stored(self, heads: tuple[int, ...], sets: Listed) -> Blocks:
        """The same pairs of tokens in other blocks: `sets`, of every token one."""
        number, count = sets.numbers(self.N), len(sets.bounds) - 1
        pairs = [
            np.unique(number[query] * count + number[key]) for query, key in self._pairs_of_tokens()
        ]
        row, column = np.divmod(
            np.unique(np.concatenate([np.zeros(0, np.int64), *pairs])), max(count, 1)
        )
        indptr = np.searchsorted(row, np.arange(count + 1))
        return Blocks(heads, sets, indptr, column, _Bits.of(self))

    def _pairs_of_tokens(self) -> Iterator[tuple[Ints, Ints]]:
        """Queries and the keys that they see, some at a time."""
        side = _side(self.N, self.block_size)
        row = np.repeat(np.arange(len(self.indptr) - 1), np.diff(self.indptr))
        within, bits = np.arange(side), _Bits.of(self)
        for some in _slices(len(row), side, side):
            query = (row[some, None] * side + within)[:, :, None]
            key = (self.indices[some, None] * side + within)[:, None, :]
            there = (query < self.N) & (key < self.N)
            query, key = np.broadcast_arrays(query, key)
            query, key = query[there], key[there]
            seen = bits(query, key)
            yield query[seen], key[seen]

    def __reduce__(self) -> tuple[Any, ...]:
        return (EvaluatedBlocks, (self.N, self.block_size, *self.arrays[1:]))

    def __repr__(self) -> str:
        return (
            f"EvaluatedBlocks(N={self.N}, {len(self.indices)} pairs, "
            f"{len(self.bitmaps)} in part, digest={self.digest[:8]})"
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Some rows of blocks."""

    lengths: Ints
    indices: Ints
    partial: Bools
    bitmaps: Bytes | None = None

    @classmethod
    def whole(cls, active: Bools) -> _Rows:
        """From which block pairs are seen, `[rows, blocks]`."""
        indices = np.nonzero(active)[1]
        return cls(active.sum(axis=1), indices, np.zeros(len(indices), np.bool_))

    @classmethod
    def of(cls, seen: Bools, block_size: int) -> _Rows:
        """From which tokens are seen, `[queries, keys]`."""
        short = [-length % block_size for length in seen.shape]
        height, width = (
            np.add.reduceat(np.ones(length, np.int64), np.arange(0, length, block_size))
            for length in seen.shape
        )
        padded = np.pad(seen, [(0, missing) for missing in short])
        tiles = padded.reshape(len(height), block_size, len(width), block_size).swapaxes(1, 2)
        count = np.count_nonzero(tiles, axis=(2, 3))
        row, column = np.nonzero(count)
        partial = (count < np.outer(height, width))[row, column]
        bits = tiles[row[partial], column[partial]].reshape(-1, block_size**2)
        lengths = np.count_nonzero(count, axis=1)
        return cls(lengths, column, partial, np.packbits(bits, axis=1))


@dataclass(frozen=True, slots=True, eq=False)
class _Bits:
    """Looks pairs of positions up."""

    block_size: int
    columns: int
    pairs: Ints
    """`row * columns + column` of each pair of blocks of which something is seen, ascending."""
    bitmap: Ints
    """The number of its bitmap; -1: all of it is seen."""
    bitmaps: Bytes

    @classmethod
    def of(cls, blocks: EvaluatedBlocks, chosen: Bools | slice = slice(None)) -> _Bits:
        """All pairs of blocks, or some of them."""
        columns = len(blocks.indptr) - 1
        row = np.repeat(np.arange(columns), np.diff(blocks.indptr))
        bitmap = np.where(blocks.partial, np.cumsum(blocks.partial) - 1, -1)
        pairs = row * columns + blocks.indices
        side = _side(blocks.N, blocks.block_size)
        return cls(side, columns, pairs[chosen], bitmap[chosen], blocks.bitmaps)

    def __call__(self, query: Ints, key: Ints) -> Bools:
        row, inner_row = np.divmod(query, self.block_size)
        column, inner_column = np.divmod(key, self.block_size)
        pair = row * self.columns + column
        if not len(self.pairs):
            return np.zeros(pair.shape, np.bool_)
        entry = np.minimum(np.searchsorted(self.pairs, pair), len(self.pairs) - 1)
        bitmap = self.bitmap[entry]
        seen: Bools = bitmap < 0
        if len(self.bitmaps):
            bit = inner_row * self.block_size + inner_column
            byte = self.bitmaps[np.maximum(bitmap, 0), bit >> 3]
            seen |= (byte << (bit & 7).astype(np.uint8)) & 128 != 0
        seen &= self.pairs[entry] == pair
        return seen


def _side(N: int, block_size: int) -> int:
    """Tokens on a side of a bitmap: a block may be larger than the sequence."""
    return min(block_size, max(N, 1))


def _slices(count: int, others: int, multiple: int = 1) -> Iterator[slice]:
    """Cuts `count` things, each to be paired with `others`, into chunks of bounded size."""
    step = max(1, _PAIRS_AT_ONCE // max(1, others * multiple)) * multiple
    return (slice(start, start + step) for start in range(0, count, step))


def _evaluated(predicate: Predicate, first: Ints, second: Ints) -> Bools:
    """What the predicate says of all pairs."""
    shape = first.shape[-2], second.shape[-1]
    try:
        found = predicate(first, second)
    except (ValueError, TypeError):
        # It refuses arrays. If it is wrong in itself, it is so for two numbers as well.
        found = [
            [predicate(one, other) for other in _each(second[..., 0, :])]
            for one in _each(first[..., 0])
        ]
    array = np.asarray(found)
    fits = array.ndim <= 2 and all(
        own in (1, there) for own, there in zip(array.shape[::-1], shape[::-1], strict=False)
    )
    if array.dtype != np.bool_ or not fits:
        raise InvalidArgument(
            "predicate",
            expected=f"booleans that broadcast to {list(shape)}",
            got=f"{array.dtype} of shape {list(array.shape)}",
        )
    return np.broadcast_to(array, shape)


def _each(values: Ints) -> list[Any]:
    """Numbers; or points, `[axes]` each."""
    return values.tolist() if values.ndim == 1 else list(values.T)
