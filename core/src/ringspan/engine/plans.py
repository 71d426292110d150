"""Plans, each made once for equal arguments."""

from __future__ import annotations

from functools import lru_cache

from ringspan.contracts.documents import Documents
from ringspan.contracts.pattern import Pattern
from ringspan.plan.layout import Layout
from ringspan.plan.parts import WHOLE_STEPS
from ringspan.plan.queries import QueryPositions
from ringspan.plan.schedule import make_plan, make_plans
from ringspan.plan.steps import Plan

__all__ = ["cached_plan", "cached_plans"]


@lru_cache(maxsize=128)
def cached_plan(
    fingerprint: str,
    pattern: Pattern,
    causal: bool,
    heads: int,
    kv_heads: int,
    layout: Layout,
    rank: int,
    documents: Documents | None = None,
    queries: QueryPositions | None = None,
    most_rows: int = WHOLE_STEPS,
) -> Plan:
    """`make_plan`, cached: a training step plans once per shape, not once per layer.

    `fingerprint` is the pattern's: its author may have left fields out of `==`.
    """
    return make_plan(
        pattern,
        causal=causal,
        heads=heads,
        kv_heads=kv_heads,
        layout=layout,
        rank=rank,
        documents=documents,
        queries=queries,
        most_rows=most_rows,
    )


@lru_cache(maxsize=4)
def cached_plans(
    fingerprint: str,
    pattern: Pattern,
    causal: bool,
    heads: int,
    kv_heads: int,
    layout: Layout,
    documents: Documents | None = None,
    most_rows: int = WHOLE_STEPS,
) -> tuple[Plan, ...]:
    """The plans of all ranks, for one process that computes them all; of a few calls only."""
    return make_plans(
        pattern,
        causal=causal,
        heads=heads,
        kv_heads=kv_heads,
        layout=layout,
        ranks=range(layout.world_size),
        documents=documents,
        most_rows=most_rows,
    )
