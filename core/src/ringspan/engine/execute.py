"""Runs a plan forward and backward: post the next messages, compute the rows at hand, merge."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from ringspan.engine.kernels import Kernels, Saved, Sums
from ringspan.engine.merge import Accumulator, Total, accumulation_dtype
from ringspan.engine.pull import Merge, PulledOutput, PulledTotal
from ringspan.engine.ring.messages import Arrival, KeyValue, Ring
from ringspan.engine.sink import sink_logits
from ringspan.plan.steps import Plan, Step

__all__ = ["backward", "forward", "output_of", "with_positive_infinity"]


def _arrivals(
    steps: tuple[Step, ...], local: KeyValue, ring: Ring | None
) -> Iterator[tuple[Step, KeyValue]]:
    """Each step with the rows to compute on; the next rows to come are already on their way."""
    elsewhere = (step for step in steps if step.index and ring is not None)

    def post() -> Arrival | None:
        step = next(elsewhere, None)
        return None if step is None or ring is None else ring.post_rows(step)

    coming = post()
    for step in steps:
        if coming is None or step.index == 0:
            yield step, local
            continue
        rows = coming.wait()
        coming = post()
        yield step, rows


def forward(
    plan: Plan,
    kernels: Kernels,
    query: Tensor,
    local: KeyValue,
    sink: Tensor | None,
    ring: Ring | None,
) -> tuple[Tensor, Tensor]:
    """Output `[B, N, H, Dv]` in the query's dtype and lse `[B, H, N]` of this rank's queries."""
    sinks = sink_logits(plan, sink, query)
    total = output_of(plan, kernels, query, local.value, sinks)
    for step, rows in _arrivals(plan.steps, local, ring):
        keys = kernels.keys(step, rows)
        for work in kernels.launches(query, keys):
            kernels.attend(work, query, keys, total)
    return total.finish(query.dtype, sinks)


def output_of(
    plan: Plan, kernels: Kernels, query: Tensor, value: Tensor, sinks: Tensor | None
) -> Accumulator | PulledOutput:
    """What takes the pieces of a forward pass."""
    batch, rows, heads, _ = query.shape
    shape = (batch, rows, heads, value.shape[-1])
    alone = plan.one_piece and sinks is None
    if kernels.choice.merges and not alone:
        return PulledOutput(kernels.merge, shape, query)
    dtype = query.dtype if alone else accumulation_dtype(query.dtype)
    return Accumulator(shape, query, dtype, plan.forward_covered, alone=alone)


def backward(
    plan: Plan, kernels: Kernels, saved: Saved, ring: Ring | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of this rank's query, key and value, in their dtype.

    The same plan with the final out and lse. Gradients of received rows go straight back to
    their owner while the next step computes; this rank's own rows come last.
    """
    saved = kernels.prepared(with_positive_infinity(saved))
    merge = kernels.merge if kernels.choice.merges and not kernels.choice.only_branches else None
    grad_query = _total(saved.query, plan.one_piece, plan.backward_covered, merge)
    grad_key, grad_value = (
        _total(x, plan.key_one_piece, plan.key_covered, merge) for x in saved.local
    )
    returning: tuple[Step, Arrival] | None = None
    for step, rows in _arrivals(plan.backward_steps, saved.local, ring):
        keys, there = kernels.keys(step, rows), None
        sums = Sums(grad_query, grad_key, grad_value)
        if step.index and ring is not None:
            there = ring.empty_grads(step, accumulation_dtype(rows.key.dtype))
            sums = Sums(grad_query, *(Total.around(x) for x in there.rows))
        for work in kernels.launches(saved.query, keys):
            kernels.add_gradients(work, saved, keys, sums)
        if ring is not None and there is not None:
            _take(ring, returning, grad_key, grad_value)
            returning = step, ring.post_grads(step, there)
    if ring is not None:
        _take(ring, returning, grad_key, grad_value)
    return (
        grad_query.finish(saved.query.dtype),
        grad_key.finish(saved.local.key.dtype),
        grad_value.finish(saved.local.value.dtype),
    )


def _take(
    ring: Ring,
    returning: tuple[Step, Arrival] | None,
    grad_key: Total | PulledTotal,
    grad_value: Total | PulledTotal,
) -> None:
    """Adds gradients that come back to those of this rank's own rows."""
    if returning is not None:
        ring.add_grads(*returning, KeyValue(grad_key.tensor, grad_value.tensor))


def with_positive_infinity(saved: Saved) -> Saved:
    """Rows that saw no key get `lse = +inf`, so that every kernel's `exp(s - lse)` is zero."""
    return replace(saved, lse=saved.lse.masked_fill(saved.lse == -torch.inf, torch.inf))


def _total(
    like: Tensor, one_piece: bool, covered: bool, merge: Merge | None
) -> Total | PulledTotal:
    if merge is not None and not one_piece:
        return PulledTotal(merge, like)
    dtype = like.dtype if one_piece else accumulation_dtype(like.dtype)
    return Total(tuple(like.shape), like, dtype, covered)
