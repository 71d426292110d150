"""Runs a plan forward and backward: post the next messages, compute the rows at hand, merge."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ringspan.contracts.selection import key_rows, query_rows
from ringspan.engine.kernels import Kernels, Saved
from ringspan.engine.merge import Accumulator, Total, accumulation_dtype
from ringspan.engine.ring.messages import Arrival, KeyValue, Ring
from ringspan.engine.sink import sink_logits
from ringspan.plan.steps import Plan, Step

__all__ = ["backward", "forward", "with_positive_infinity"]


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
    rounded = plan.one_piece and sinks is None
    dtype = query.dtype if rounded else accumulation_dtype(query.dtype)
    shape = (*query.shape[:3], local.value.shape[-1])
    total = Accumulator(shape, query, dtype, plan.forward_covered)
    for step, rows in _arrivals(plan.steps, local, ring):
        keys = kernels.keys(step, rows)
        for tiles in kernels.launches(query, keys):
            out, lse = kernels.forward(tiles, query, keys)
            total.put(query_rows(tiles), out, lse, first=tiles.forward_first)
            # Not beside the next piece.
            del out, lse
    if sinks is not None:
        total.put_sink(sinks)
    return total.out.finish(query.dtype), total.lse


def backward(
    plan: Plan, kernels: Kernels, saved: Saved, ring: Ring | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of this rank's query, key and value, in their dtype.

    The same plan with the final out and lse. Gradients of received rows go straight back to
    their owner while the next step computes; this rank's own rows come last.
    """
    saved, batch = with_positive_infinity(saved), saved.query.shape[0]
    grad_query = _total(saved.query, plan.one_piece, plan.backward_covered)
    grad_key, grad_value = (_total(x, plan.key_one_piece, plan.key_covered) for x in saved.local)
    returning: tuple[Step, Arrival] | None = None
    for step, rows in _arrivals(plan.backward_steps, saved.local, ring):
        sums = None
        if step.index and ring is not None:
            sums = ring.empty_grads(step, grad_key.dtype)
        keys = kernels.keys(step, rows)
        for tiles in kernels.launches(saved.query, keys):
            piece = kernels.backward(tiles, saved, keys)
            at_query, at_key = query_rows(tiles), key_rows(tiles)
            grad_query.put(at_query, piece.query, first=tiles.backward_first)
            if sums is None:
                grad_key.put(at_key, piece.key, first=tiles.key_first)
                grad_value.put(at_key, piece.value, first=tiles.key_first)
            else:
                at_key.add(sums.rows.key, at_key.split(piece.key, batch))
                at_key.add(sums.rows.value, at_key.split(piece.value, batch))
            # Not beside the next one.
            del piece
        if ring is not None and sums is not None:
            _take(ring, returning, grad_key, grad_value)
            returning = step, ring.post_grads(step, sums)
    if ring is not None:
        _take(ring, returning, grad_key, grad_value)
    return (
        grad_query.finish(saved.query.dtype),
        grad_key.finish(saved.local.key.dtype),
        grad_value.finish(saved.local.value.dtype),
    )


def _take(
    ring: Ring, returning: tuple[Step, Arrival] | None, grad_key: Total, grad_value: Total
) -> None:
    """Adds gradients that come back to those of this rank's own rows."""
    if returning is not None:
        ring.add_grads(*returning, KeyValue(grad_key.tensor, grad_value.tensor))


def with_positive_infinity(saved: Saved) -> Saved:
    """Rows that saw no key get `lse = +inf`, so that every kernel's `exp(s - lse)` is zero."""
    lse = saved.lse.masked_fill(saved.lse == -torch.inf, torch.inf)
    return Saved(saved.grad_out, saved.query, saved.local, saved.out, lse)


def _total(like: Tensor, one_piece: bool, covered: bool) -> Total:
    dtype = like.dtype if one_piece else accumulation_dtype(like.dtype)
    return Total(tuple(like.shape), like, dtype, covered)
