"""Queries beside the keys' sequence: cross-attention, and queries at given positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Domain, Listed
from ringspan.patterns.dense import Dense
from ringspan.plan.cells import Cells
from ringspan.plan.tiling import Joined, Unit, join_heads

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.contracts.pattern import Pattern
    from ringspan.plan.queries import QueryPositions

    Ints = npt.NDArray[np.int64]

__all__ = ["check_cross", "cross_work"]

_FURTHEST = 2**53
_ROWS = 512
"""Query rows of a tile where a window hides most keys."""


def check_cross(pattern: Pattern, queries: QueryPositions, domain: Domain) -> None:
    """Refuses queries that the pattern cannot place among the keys."""
    positions, length, N = queries.positions, queries.length, domain.N
    if positions is None:
        if not isinstance(pattern, Dense) or pattern.along is not None:
            raise InvalidArgument(
                "q",
                expected=f"{N} tokens, as k, or query_positions: this pattern places queries "
                "among the keys",
                got=f"{length} tokens with {pattern!r}",
                remedy="Pass query_positions=, or Dense() for another sequence",
            )
        if domain.causal or pattern.window is not None:
            raise InvalidArgument(
                "query_positions",
                expected=f"positions of {length} queries among {N} keys, for causal or a window",
                got="None",
            )
        return
    outside = positions[(positions < 0) | (positions > _FURTHEST)]
    if len(outside):
        raise InvalidArgument(
            "query_positions", expected=f"integers in 0 .. {_FURTHEST}", got=str(outside[0])
        )
    if isinstance(pattern, Dense) and pattern.along is None:
        return
    if len(positions) and positions.max() >= N:
        raise InvalidArgument(
            "query_positions",
            expected=f"positions below {N}, as k has tokens, for {pattern!r}",
            got=str(positions.max()),
        )
    if len(np.unique(positions)) != len(positions):
        raise InvalidArgument(
            "query_positions", expected=f"each position once, for {pattern!r}", got="repetitions"
        )


def cross_work(pattern: Dense, queries: QueryPositions, domain: Domain) -> tuple[Joined, ...]:
    """Dense attention of queries to all keys; positions may repeat or lie beyond the keys."""
    positions, length, N = queries.positions, queries.length, domain.N
    group = domain.heads // domain.kv_heads
    rows = np.arange(length)
    query, key = Listed.of(rows, np.array([length])), Listed.of(np.arange(N), np.array([N]))
    if positions is None:
        cells, windowed = Cells(query, key), False
    else:
        order = np.argsort(positions, kind="stable")
        at = positions[order]
        left, right = pattern.window or (None, None)
        low = np.zeros_like(at) if left is None else np.clip(at - left, 0, N)
        high = np.full_like(at, N) if right is None else np.clip(at + right + 1, 0, N)
        high = np.minimum(high, at + 1) if domain.causal else high
        query = Listed.of(rows[order], np.array([length]))
        cells, windowed = Cells(query, key, low, high), pattern.window is not None
    return join_heads(
        Unit(
            query_head=first,
            group=group,
            query=batch.query,
            key_head=first // group,
            key=batch.key,
            mask=batch.mask,
            part=0,
            low=batch.low,
            high=batch.high,
            batch=number,
            keys_overlap=windowed,
            left=batch.left,
            right=batch.right,
        )
        for number, batch in enumerate(cells.batches(_ROWS if windowed else None))
        for first in range(0, domain.heads, group)
    )
