"""Runs the plans of all ranks in one process: shards stream through the device one by one.

The caller's tensors hold the shards of all ranks, one after the other. Forward by query shard,
which meets the rows that it needs of one key shard after the other. Backward by key shard, whose
gradients stay on the device until every query shard has added to them; those of the queries are
summed where the caller's queries lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from ringspan.engine.execute import with_positive_infinity
from ringspan.engine.kernels import Kernels, Saved, Sums
from ringspan.engine.merge import Accumulator, Total, accumulation_dtype
from ringspan.engine.ring.messages import KeyValue
from ringspan.engine.sink import sink_logits
from ringspan.engine.virtual.apart import parcel_apart, plan_apart, step_apart
from ringspan.engine.virtual.shards import Shards
from ringspan.engine.virtual.staging import Load, Staging, Take, ahead
from ringspan.plan.staged import index_bytes
from ringspan.plan.steps import Parcel, Plan, Step

__all__ = ["backward", "forward"]

Loads = Iterator[Callable[[], Load]]
Arrivals = Iterator[tuple[Tensor, ...]]


def forward(
    plans: Sequence[Plan],
    kernels: Kernels,
    staging: Staging,
    query: Tensor,
    local: KeyValue,
    sink: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Output `[B, N, H, Dv]` in the query's dtype and lse `[B, H, N]`, where the query lies."""
    batch, N, heads, _ = query.shape
    out = query.new_empty(batch, N, heads, local.value.shape[-1])
    lse = query.new_empty(batch, heads, N, dtype=accumulation_dtype(query.dtype))
    sink = None if sink is None else sink.to(staging.device)
    shards = Shards(plans)
    arrivals = ahead(_query_loads(shards, staging, query, local))
    for plan, rows in zip(plans, shards.rows, strict=True):
        if plan.rows:
            found = _attend(replace(kernels, plan=plan_apart(plan)), staging, arrivals, sink)
            takes = (out[:, rows].copy_, lse[..., rows].copy_)
            staging.down(out.device, *zip(found, takes, strict=True))
            del found
    staging.settle()
    return out, lse


def _query_loads(shards: Shards, staging: Staging, query: Tensor, local: KeyValue) -> Loads:
    """For each rank its queries with its own keys, then the rows that it needs of others."""
    for plan, rows in zip(shards.plans, shards.rows, strict=True):
        if plan.rows:
            yield partial(staging.up, query[:, rows], *shards.keys(local, plan.rank))
            for step in _elsewhere(plan):
                theirs, parcel = shards.keys(local, step.source), shards.parcel(step)
                yield partial(staging.up_gathered, theirs, parcel)


def _elsewhere(plan: Plan) -> Iterator[Step]:
    """The steps for which rows of other ranks are needed."""
    return (step for step in plan.steps if step.index and step.receive)


def _attend(
    kernels: Kernels, staging: Staging, arrivals: Arrivals, sink: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One rank's output and lse."""
    plan = kernels.plan
    query, total = _attend_at_home(kernels, staging, sink, *next(arrivals))
    for step in _elsewhere(plan):
        _meet(kernels, staging, step, query, KeyValue(*next(arrivals)), total)
    out, lse = total.finish(query.dtype, sink_logits(plan, sink, query))
    staging.resident.hold(out, lse)
    return out, lse


def _attend_at_home(
    kernels: Kernels,
    staging: Staging,
    sink: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
) -> tuple[Tensor, Accumulator]:
    """A rank's queries, and what they find among its own keys, which are let go afterwards."""
    plan = kernels.plan
    alone = plan.one_piece and sink is None and plan.null_keys is None
    dtype = query.dtype if alone else accumulation_dtype(query.dtype)
    batch, rows, heads, _ = query.shape
    shape = (batch, rows, heads, value.shape[-1])
    total = Accumulator(shape, query, dtype, plan.forward_covered, alone=alone)
    for step in plan.steps:
        if step.index == 0:
            _meet(kernels, staging, step, query, KeyValue(key, value), total)
    return query, total


def _meet(
    kernels: Kernels,
    staging: Staging,
    step: Step,
    query: Tensor,
    rows: KeyValue,
    total: Accumulator,
) -> None:
    """Merges what queries find among some key rows."""
    resident = staging.resident
    keys = kernels.keys(step_apart(step), rows)
    with resident.beside(index_bytes(step)):
        for work in kernels.launches(query, keys):
            kernels.attend(work, query, keys, total)
            resident.hold(*total.held)


def backward(
    plans: Sequence[Plan], kernels: Kernels, staging: Staging, saved: Saved
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value in their dtype, each where its tensor lies."""
    shards, query = Shards(plans), saved.query
    # Contiguous, as the operator promises to `torch.compile`.
    grad_query = query.new_zeros(query.shape, dtype=accumulation_dtype(query.dtype))
    grads = KeyValue(*(x.new_zeros(x.shape) for x in saved.local))
    arrivals = ahead(_key_loads(shards, staging, with_positive_infinity(saved)))
    for rank in range(len(plans)):
        sums: _Sums | None = None
        for asking, steps in shards.visits(rank):
            alone = replace(kernels, plan=plan_apart(plans[asking]))
            sums, piece = _visit(alone, staging, shards, steps, sums, next(arrivals))
            staging.down(query.device, (piece, grad_query[:, shards.rows[asking]].add_))
            del piece
        if sums is not None:
            staging.down(saved.local.key.device, *sums.finish(shards.keys(grads, rank), staging))
            del sums
    staging.settle()
    return grad_query.to(query.dtype), *grads


def _key_loads(shards: Shards, staging: Staging, saved: Saved) -> Loads:
    """For each rank its keys, with the first of the queries that see any of them, then others."""
    for rank in range(len(shards.plans)):
        own: tuple[Tensor, ...] = shards.keys(saved.local, rank)
        for asking, _ in shards.visits(rank):
            at = shards.rows[asking]
            rows = (saved.grad_out[:, at], saved.query[:, at], saved.out[:, at], saved.lse[..., at])
            yield partial(staging.up, *rows, *own)
            own = ()


@dataclass(frozen=True, slots=True)
class _Sums:
    """One rank's keys and values on the device, and what their gradients come to so far."""

    rows: KeyValue
    grads: KeyValue

    @classmethod
    def of(cls, rows: KeyValue, staging: Staging) -> _Sums:
        return cls(rows, _zeros(rows, staging))

    def finish(self, homes: KeyValue, staging: Staging) -> Iterator[tuple[Tensor, Take]]:
        """The gradients in the dtype of where they go, and how they get there."""
        for grad, home in zip(self.grads, homes, strict=True):
            finished = grad.to(home.dtype)
            staging.resident.hold(finished)
            yield finished, home.copy_


def _zeros(rows: KeyValue, staging: Staging) -> KeyValue:
    dtype = accumulation_dtype(rows.key.dtype)
    zeros = KeyValue(*(torch.zeros(x.shape, dtype=dtype, device=x.device) for x in rows))
    staging.resident.hold(*zeros)
    return zeros


def _visit(
    kernels: Kernels,
    staging: Staging,
    shards: Shards,
    steps: Sequence[Step],
    sums: _Sums | None,
    arrived: tuple[Tensor, ...],
) -> tuple[_Sums, Tensor]:
    """Adds one rank's queries to the gradients of the keys; returns the gradient of the queries."""
    grad_out, query, out, lse, *own = arrived
    if sums is None:
        sums = _Sums.of(KeyValue(*own), staging)
    saved = Saved(grad_out, query, sums.rows, out, lse)
    dtype = accumulation_dtype(query.dtype)
    grad_query = torch.zeros(query.shape, dtype=dtype, device=query.device)
    staging.resident.hold(grad_query)
    for step in steps:
        with staging.resident.beside(index_bytes(step)):
            if step.index == 0:
                _add(kernels, step, saved, sums.rows, grad_query, sums.grads)
            else:
                _add_some(kernels, staging, step, shards.parcel(step), saved, grad_query, sums)
    return sums, grad_query


def _add_some(
    kernels: Kernels,
    staging: Staging,
    step: Step,
    parcel: Parcel,
    saved: Saved,
    grad_query: Tensor,
    sums: _Sums,
) -> None:
    """The same for a step that needs some rows of the keys only."""
    device, parcel = grad_query.device, parcel_apart(parcel)
    at = (slice(None), parcel.rows.on(device), parcel.heads.on(device))
    rows = KeyValue(*(x[at].unsqueeze(2) for x in sums.rows))
    grads = _zeros(rows, staging)
    staging.resident.hold(*rows, *at[1:])
    _add(kernels, step, saved, rows, grad_query, grads)
    for total, some in zip(sums.grads, grads, strict=True):
        # Rows of a parcel are distinct, so reading and writing them loses nothing.
        with staging.resident.beside(some.nbytes):
            total[at] += some.squeeze(2)


def _add(
    kernels: Kernels,
    step: Step,
    saved: Saved,
    rows: KeyValue,
    grad_query: Tensor,
    grads: KeyValue,
) -> None:
    """Adds what a step's work gives to the gradients."""
    keys, saved = kernels.keys(step_apart(step), rows), kernels.prepared(saved)
    sums = Sums(*(Total.around(x) for x in (grad_query, *grads)))
    for work in kernels.launches(saved.query, keys):
        kernels.add_gradients(work, saved, keys, sums)
