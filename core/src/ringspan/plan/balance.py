"""Which layout gives every rank its share of the work, and what that costs in rows that travel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ringspan.catalogue import catalogue
from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Domain, Pattern
from ringspan.patterns.dense import Dense
from ringspan.plan.cells import Cells
from ringspan.plan.cut import cut
from ringspan.plan.holdings import Holdings
from ringspan.plan.layout import Layout
from ringspan.plan.orders import order
from ringspan.plan.restart import check_documents
from ringspan.plan.schedule import parts_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.contracts.tokens import Tokens

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

__all__ = ["EVEN", "busiest", "choose_layout"]

EVEN = 1.05
"""A busiest rank with at most so many times the mean work needs no remedy."""
_PAIRS_PER_ROW = 1000
"""About as many query-key pairs a GPU computes in 16 bits while one key/value row arrives."""
_RANKS_LOOKED_AT = 8
"""Counting arriving rows takes a pass over the pattern for each rank."""


def choose_layout(
    N: int | Tokens,
    world_size: int,
    *,
    pattern: Pattern | None = None,
    causal: bool = False,
    weights: tuple[float, ...] | None = None,
    documents: Documents | None = None,
    heads: int = 1,
    kv_heads: int | None = None,
) -> Layout:
    """Contiguous shards, or zigzag where causality would leave most of the work to some ranks.

    Zigzag evens the work out, and makes neighbours travel. Dense attention has all rows travel
    anyway. For sparser patterns both layouts are counted: the work of the busiest rank in
    query-key pairs, relative to its weight, and the most rows that a rank receives, a row for
    1,000 pairs. The cheaper is taken, contiguous shards where equal.

    Args:
        N: number of tokens, or the tokens themselves.
        world_size: number of ranks.
        pattern: what attends to what; None: `Dense()`.
        causal: whether a token sees earlier ones only.
        weights: relative speeds of the ranks; None: equal.
        documents: of packed sequences.
        heads: query heads; matters where heads see different tokens.
        kv_heads: key/value heads; None: as many as `heads`.

    Returns:
        A `Layout` whose `reason` says why; one rank needs none.

    Raises:
        InvalidArgument: the arguments do not fit each other; as `Layout` and `attention`.

    Example:
        >>> choose_layout(65536, 4).ordering is None
        True
    """
    contiguous = Layout(N, world_size, weights=weights)
    kv_heads = heads if kv_heads is None else kv_heads
    pattern = Dense() if pattern is None else pattern
    _check_kinds(pattern, causal, documents, heads, kv_heads)
    load = _Load(pattern, Domain(contiguous.tokens, heads, kv_heads, order, documents, causal))
    load.check()
    zigzag, reason = _choice(load, contiguous)
    return Layout(N, world_size, "zigzag" if zigzag else None, weights, reason=reason)


def _check_kinds(
    pattern: object, causal: object, documents: object, heads: object, kv_heads: object
) -> None:
    if not isinstance(pattern, Pattern):
        raise InvalidArgument("pattern", expected="a Pattern or None", got=repr(pattern))
    if not isinstance(documents, Documents | None):
        raise InvalidArgument("documents", expected="Documents or None", got=repr(documents))
    if not isinstance(causal, bool):
        raise InvalidArgument("causal", expected="True or False", got=repr(causal))
    for name, count in {"heads": heads, "kv_heads": kv_heads}.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise InvalidArgument(name, expected="an integer >= 1", got=repr(count))
    if heads % kv_heads:  # type: ignore[operator]
        raise InvalidArgument("heads", expected=f"a multiple of {kv_heads}", got=repr(heads))


def _choice(load: _Load, contiguous: Layout) -> tuple[bool, str]:
    """Whether to take zigzag, and why or why not."""
    if contiguous.world_size == 1:
        return False, ""
    if not load.domain.causal:
        return False, "without causality, ranks do about equal work and neighbours stay together"
    uneven = load.busiest(contiguous)
    work = f"busiest rank {uneven:.2f}x the mean work"
    if uneven <= EVEN:
        return False, work
    if "zigzag" not in catalogue().names("ordering"):
        return False, f"{work}; install ringspan-balanced, whose zigzag layout evens it out"
    zigzag = Layout(contiguous.tokens, contiguous.world_size, "zigzag", contiguous.weights)
    even = load.busiest(zigzag)
    near, far = load.most_received(contiguous), load.most_received(zigzag)
    saved = (uneven - even) * load.pairs.sum() / contiguous.world_size
    far_rows, near_rows = (round(rows / load.domain.kv_heads) for rows in (far, near))
    rows = f"a rank receives up to about {far_rows} rows per head instead of {near_rows}"
    if saved > (0 if load.dense else (far - near) * _PAIRS_PER_ROW):
        return True, f"busiest rank {even:.2f}x the mean work instead of {uneven:.2f}x; {rows}"
    return False, f"{work}; zigzag would make it {even:.2f}x, but then {rows}"


def busiest(work: npt.ArrayLike, sizes: npt.ArrayLike) -> float:
    """The most work of a rank in proportion to its size, as a multiple of the mean.

    Example:
        >>> busiest([1.0, 3.0], [5, 5])
        1.5
        >>> busiest([1.0, 3.0], [2, 6])
        1.0
    """
    work, sizes = np.asarray(work, np.float64), np.asarray(sizes, np.float64)
    some = sizes > 0
    if not work.sum():
        return 1.0
    return float((work[some] / sizes[some]).max() * sizes.sum() / work.sum())


@dataclass(frozen=True, eq=False)
class _Load:
    """What a pattern costs wherever its tokens lie."""

    pattern: Pattern
    domain: Domain

    @property
    def dense(self) -> bool:
        """Whether every token sees every other one, but for causality."""
        pattern = self.pattern
        whole = isinstance(pattern, Dense) and pattern.window is None
        return whole and self.domain.documents is None

    def check(self) -> None:
        """Raises `InvalidArgument` where the pattern or the documents do not fit."""
        check_documents(self.domain.documents, self.domain.tokens)
        self.pattern.check(self.domain)

    @cached_property
    def pairs(self) -> npt.NDArray[np.float64]:
        """`[N]`, how many keys each query sees, over all heads. Bitmaps count as full."""
        seen = np.zeros(self.domain.N)
        for heads, _, reach in self._parts():
            seen[reach.query] += heads * (reach.stop - reach.start)
        return seen

    def busiest(self, layout: Layout) -> float:
        """`busiest` of the layout."""
        work = [self.pairs[layout.order[a:b]].sum() for a, b in pairwise(layout.bounds)]
        return busiest(work, layout.sizes)

    def most_received(self, layout: Layout) -> int:
        """The most rows, over all key/value heads, that one of the ranks looked at receives.

        Rows that parts share are counted for each.
        """
        most = min(layout.world_size, _RANKS_LOOKED_AT)
        ranks = np.unique(np.linspace(0, layout.world_size - 1, most).round().astype(np.int64))
        held = np.zeros((len(ranks), self.domain.N), np.bool_)
        for mine, rank in zip(held, ranks, strict=True):
            mine[layout.order[layout.bounds[rank] : layout.bounds[rank + 1]]] = True
        received = np.zeros(len(ranks), np.int64)
        for _, kv_heads, reach in self._parts():
            received += [kv_heads * reach.received(mine) for mine in held]
        return int(received.max())

    def _parts(self) -> Iterator[tuple[int, int, _Reach]]:
        """For each part its query heads, its key/value heads and what a head sees."""
        everyone = Holdings.of(Layout(self.domain.tokens))
        group = self.domain.heads // self.domain.kv_heads
        for _, part in parts_of(self.pattern, self.domain):
            cells = cut(part, everyone, everyone).cells(0, 0, causal=self.domain.causal)
            kv_heads = len({head // group for head in part.heads})
            yield len(part.heads), kv_heads, _Reach.of(cells)


@dataclass(frozen=True, slots=True, eq=False)
class _Reach:
    """Query `query[i]` sees the keys `key[start[i] : stop[i]]`."""

    query: Ints
    start: Ints
    stop: Ints
    key: Ints

    @classmethod
    def of(cls, cells: Cells) -> _Reach:
        lengths = np.diff(cells.query.bounds)
        first = np.repeat(cells.key.bounds[:-1], lengths)
        low = 0 if cells.low is None else cells.low
        high = np.repeat(np.diff(cells.key.bounds), lengths) if cells.high is None else cells.high
        return cls(cells.query.rows, first + low, first + np.maximum(low, high), cells.key.rows)

    def received(self, mine: Bools) -> int:
        """How many keys a rank needs that it does not hold; `mine[position]`: what it holds."""
        asking = mine[self.query]
        opened, closed = (
            np.bincount(ends[asking], minlength=len(self.key) + 1)
            for ends in (self.start, self.stop)
        )
        seen = np.cumsum(opened - closed)[:-1] > 0
        needed = np.zeros_like(mine)
        needed[self.key[seen]] = True
        return int(np.count_nonzero(needed & ~mine))
