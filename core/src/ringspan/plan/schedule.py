"""Who computes what, when, and which rows travel: one rank's part of one attention call."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.masks import MaskCase
from ringspan.contracts.pattern import Blocks, Domain, Part, Pattern, Windows
from ringspan.contracts.work import Indexed
from ringspan.patterns.dense import Dense
from ringspan.plan.cross import check_cross, cross_work
from ringspan.plan.cut import spares_intervals
from ringspan.plan.firsts import mark_first
from ringspan.plan.holdings import Holdings
from ringspan.plan.meetings import Meeting, Meetings
from ringspan.plan.orders import order
from ringspan.plan.parts import WHOLE_STEPS
from ringspan.plan.processing import stored_order
from ringspan.plan.promises import check_part
from ringspan.plan.restart import check_documents
from ringspan.plan.steps import Plan
from ringspan.plan.whole import whole_of

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.contracts.documents import Documents
    from ringspan.plan.layout import Layout
    from ringspan.plan.queries import QueryPositions

    Ints = npt.NDArray[np.int64]

__all__ = ["make_plan", "make_plans", "parts_of"]


def make_plan(
    pattern: Pattern,
    *,
    causal: bool,
    kv_heads: int,
    layout: Layout,
    rank: int,
    heads: int | None = None,
    documents: Documents | None = None,
    queries: QueryPositions | None = None,
    most_rows: int = WHOLE_STEPS,
) -> Plan:
    """The part of `rank` in attention with `pattern` over `layout`. Pure and deterministic.

    `heads` counts query heads, by default as many as `kv_heads`; `queries`, on one rank only,
    are those of a call whose queries are not the tokens of the keys; a step of more than
    `most_rows` key/value rows travels in parts.

    Raises:
        InvalidArgument: the pattern, documents or queries do not fit the tokens.
    """
    (plan,) = make_plans(
        pattern,
        causal=causal,
        kv_heads=kv_heads,
        layout=layout,
        ranks=[rank],
        heads=heads,
        documents=documents,
        queries=queries,
        most_rows=most_rows,
    )
    return plan


def make_plans(
    pattern: Pattern,
    *,
    causal: bool,
    kv_heads: int,
    layout: Layout,
    ranks: Sequence[int],
    heads: int | None = None,
    documents: Documents | None = None,
    queries: QueryPositions | None = None,
    most_rows: int = WHOLE_STEPS,
) -> tuple[Plan, ...]:
    """`make_plan` for several ranks: what they have in common is found out once."""
    heads = kv_heads if heads is None else heads
    domain = Domain(layout.tokens, heads, kv_heads, order, documents, causal, layout.stored_blocks)
    check_documents(documents, layout.tokens)
    if queries is not None:
        check_cross(pattern, queries, domain)
    pattern.check(domain)
    keys = Holdings.of(layout)
    if queries is not None and isinstance(pattern, Dense) and pattern.along is None:
        positions = np.arange(queries.length) if queries.positions is None else queries.positions
        meeting = Meeting.alone(cross_work(pattern, queries, domain), keys.positions[0])
        return (_finished([meeting], positions, keys.positions[0], None, domain, 0, 1, None),)
    parts = parts_of(pattern, domain)
    if layout.ordering is not None:
        parts = [(number, stored_order(part, layout)) for number, part in parts]
    asking = keys
    if queries is not None and queries.positions is not None:
        asking = Holdings.some(queries.positions, layout.N)
    meetings = Meetings(parts, asking, keys, domain)
    work: dict[int, list[Meeting]] = {rank: [] for rank in ranks}
    for index in range(layout.world_size):
        for rank in ranks:
            work[rank] += meetings.work(index, rank, most_rows)
    null_keys = null_keys_of(pattern, domain)
    masks = _masks_of_any_rank(parts, causal, keys) if layout.world_size > 1 else None
    plans = tuple(
        _finished(
            work.pop(rank),
            asking.positions[rank],
            keys.positions[rank],
            null_keys,
            domain,
            rank,
            layout.world_size,
            masks,
        )
        for rank in ranks
    )
    if layout.world_size == 1 and queries is None:
        return tuple(replace(plan, whole=whole_of(parts, domain, keys)) for plan in plans)
    return plans


def _finished(
    meetings: Sequence[Meeting],
    query_positions: Ints,
    key_positions: Ints,
    null_keys: Ints | None,
    domain: Domain,
    rank: int,
    world_size: int,
    masks: frozenset[MaskCase] | None,
) -> Plan:
    rows, key_rows = len(query_positions), len(key_positions)
    work, firsts = mark_first(
        [meeting.joined for meeting in meetings],
        local=sum(meeting.index == 0 for meeting in meetings),
        heads=domain.heads,
        rows=rows,
        kv_heads=domain.kv_heads,
        key_rows=key_rows,
    )
    steps = tuple(meeting.finished(done) for meeting, done in zip(meetings, work, strict=True))
    occurring = frozenset(work.mask for step in steps for work in step.work)
    return Plan(
        rank=rank,
        world_size=world_size,
        rows=rows,
        key_rows=key_rows,
        heads=domain.heads,
        kv_heads=domain.kv_heads,
        query_positions=Indexed(query_positions),
        null_keys=None if null_keys is None else Indexed(null_keys[:, query_positions]),
        steps=steps,
        masks=masks or occurring or frozenset({MaskCase.FULL}),
        documents=domain.documents,
        **asdict(firsts),
    )


def parts_of(pattern: Pattern, domain: Domain) -> list[tuple[int, Part]]:
    """The pattern's parts over all documents, with a number each, the largest first.

    Parts of one number and head have no tokens in common.
    """
    numbered = []
    asked = [(None, domain)] if pattern.documents_at_once else list(domain.alone())
    for starts, alone in asked:
        for number, part in enumerate(pattern.parts(alone)):
            check_part(pattern, part, alone)
            numbered.append((number, part if starts is None else part.shifted(starts)))
    sizes: Counter[int] = Counter()
    for number, part in numbered:
        sizes[number] += part.sets.size
    place = {number: place for place, (number, _) in enumerate(sizes.most_common())}
    return sorted(((place[number], part) for number, part in numbered), key=lambda item: item[0])


def null_keys_of(pattern: Pattern, domain: Domain) -> Ints | None:
    """`Pattern.null_keys` over all documents, int64 `[heads, N]`."""
    if pattern.documents_at_once:
        return pattern.null_keys(domain)
    total = None
    for starts, alone in domain.alone():
        counts = pattern.null_keys(alone)
        if counts is not None:
            total = np.zeros((domain.heads, domain.N), np.int64) if total is None else total
            total[:, starts[:, None] + np.arange(alone.N)] = counts[:, None, :]
    return total


def _masks_of_any_rank(
    parts: Sequence[tuple[int, Part]], causal: bool, holdings: Holdings
) -> frozenset[MaskCase]:
    """Every case that some rank of a ring could meet, so that all ranks choose alike."""
    masks = {MaskCase.FULL}
    if causal:
        masks |= {MaskCase.CAUSAL}
        if not all(spares_intervals(part, holdings) for _, part in parts):
            masks |= {MaskCase.BAND, MaskCase.INTERVAL}
    if any(isinstance(part, Windows) for _, part in parts):
        masks |= {MaskCase.CAUSAL, MaskCase.BAND, MaskCase.INTERVAL}
    if any(_needs_bitmaps(part, causal) for _, part in parts):
        masks |= {MaskCase.BITMAP}
    return frozenset(masks)


def _needs_bitmaps(part: Part, causal: bool) -> bool:
    if isinstance(part, Blocks):
        return part.seen is not None
    if isinstance(part, Windows) and causal:
        listed = part.sets.listed()
        return listed.ascending() is not listed
    return False
