"""Who computes what, when, and which rows travel: one rank's part of one attention call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.masks import MaskCase
from ringspan.contracts.pattern import Domain, Pattern
from ringspan.contracts.work import Indexed
from ringspan.plan.cut import Batch, Cut
from ringspan.plan.firsts import mark_first
from ringspan.plan.orders import order
from ringspan.plan.steps import Parcel, Plan, Step
from ringspan.plan.tiling import Unit, join_heads

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.plan.layout import Layout

    Ints = npt.NDArray[np.int64]

__all__ = ["make_plan"]


def make_plan(pattern: Pattern, *, causal: bool, kv_heads: int, layout: Layout, rank: int) -> Plan:
    """The part of `rank` in attention with `pattern` over `layout`. Pure and deterministic."""
    domain = Domain(layout.tokens, kv_heads, order)
    holdings = _Holdings(layout)
    cuts = [Cut(cliques, holdings.owner, layout.world_size) for cliques in pattern.cliques(domain)]
    meetings = _Meetings(cuts, holdings, kv_heads, causal)
    steps = tuple(
        _step(meetings, index, rank, layout.world_size) for index in range(layout.world_size)
    )
    steps, facts = mark_first(steps, layout.sizes[rank], kv_heads)
    return Plan(
        rank=rank,
        world_size=layout.world_size,
        rows=layout.sizes[rank],
        kv_heads=kv_heads,
        steps=steps,
        masks=_masks(causal, layout),
        **facts,
    )


def _masks(causal: bool, layout: Layout) -> frozenset[MaskCase]:
    if not causal:
        return frozenset({MaskCase.FULL})
    if layout.world_size == 1:
        return frozenset({MaskCase.CAUSAL})
    if layout.contiguous:
        return frozenset({MaskCase.FULL, MaskCase.CAUSAL})
    return frozenset(MaskCase)


class _Holdings:
    """For each position: which rank holds it, and in which of its rows."""

    def __init__(self, layout: Layout) -> None:
        self.sizes = layout.sizes
        self.owner = np.empty(layout.N, dtype=np.int64)
        self.row = np.empty(layout.N, dtype=np.int64)
        self.owner[layout.order] = np.repeat(np.arange(layout.world_size), layout.sizes)
        starts = np.repeat(np.asarray(layout.bounds[:-1], dtype=np.int64), layout.sizes)
        self.row[layout.order] = np.arange(layout.N) - starts


class _Meetings:
    """The tiles between any two ranks."""

    def __init__(
        self, cuts: Sequence[Cut], holdings: _Holdings, kv_heads: int, causal: bool
    ) -> None:
        self._cuts, self._holdings = cuts, holdings
        self._kv_heads, self._causal = kv_heads, causal

    def batches(self, query_rank: int, key_rank: int) -> list[Batch]:
        return [
            batch
            for cut in self._cuts
            for batch in cut.meet(query_rank, key_rank, causal=self._causal)
        ]

    def needed(self, batches: Sequence[Batch], key_rank: int) -> npt.NDArray[np.bool_]:
        """`[Hkv, rows of key_rank]`: which rows some query sees. Shared rows count once."""
        needed = np.zeros((self._kv_heads, self._holdings.sizes[key_rank]), dtype=np.bool_)
        for batch in batches:
            needed[np.asarray(batch.heads)[:, None], self._holdings.row[batch.key.ravel()]] = True
        return needed

    def units(
        self, batches: Sequence[Batch], packed: npt.NDArray[np.int64] | None
    ) -> Iterator[Unit]:
        """One unit per batch and head; `packed[head, row]` is where a row lies on arrival."""
        for number, batch in enumerate(batches):
            query = self._holdings.row[batch.query]
            key = self._holdings.row[batch.key]
            for head in batch.heads:
                if packed is None:
                    yield Unit(head, query, head, key, batch.mask, batch.high, number)
                else:
                    yield Unit(head, query, 0, packed[head][key], batch.mask, batch.high, number)


def _step(meetings: _Meetings, index: int, rank: int, world_size: int) -> Step:
    source, target = (rank - index) % world_size, (rank + index) % world_size
    batches = meetings.batches(rank, source)
    if index == 0:
        nothing = np.zeros((0, 0), dtype=np.bool_)
        return Step(0, rank, rank, _parcel(nothing), 0, join_heads(meetings.units(batches, None)))
    arriving = meetings.needed(batches, source)
    packed = (np.cumsum(arriving) - 1).reshape(arriving.shape)
    leaving = meetings.needed(meetings.batches(target, rank), rank)
    return Step(
        index,
        source,
        target,
        _parcel(leaving),
        int(arriving.sum()),
        join_heads(meetings.units(batches, packed)),
    )


def _parcel(needed: npt.NDArray[np.bool_]) -> Parcel:
    heads, rows = np.nonzero(needed)
    return Parcel(Indexed(rows), Indexed(heads))
