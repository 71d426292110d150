"""One pass of a call: on one rank, over a ring, or over virtual ranks; and what it moved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ringspan.contracts.errors import KernelFault
from ringspan.engine import execute
from ringspan.engine.chosen import Chosen
from ringspan.engine.merge import accumulation_dtype
from ringspan.engine.virtual import loop as virtual
from ringspan.engine.virtual.staging import Staging

if TYPE_CHECKING:
    from ringspan.contracts.communicator import Communicator, Exchange
    from ringspan.engine.choice import Choice
    from ringspan.engine.kernels import Saved
    from ringspan.engine.ring.messages import Ring
    from ringspan.engine.run import Run

__all__ = ["Backward", "Forward", "Traffic", "backward_pass", "empty_outputs", "forward_pass"]

Three = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a pass moved to and from this rank; with virtual ranks, to and from the device."""

    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_resident: int = 0
    """With virtual ranks: the most bytes of tensors that were on the device at once, besides
    those that the caller holds there and what a kernel takes for itself."""

    @classmethod
    def of(cls, way: Ring | Staging | None) -> Traffic:
        """What a ring or a staging has moved so far."""
        if way is None:
            return cls()
        if isinstance(way, Staging):
            return cls(way.bytes_down, way.bytes_up, way.resident.peak)
        return cls(*way.traffic)


@dataclass(frozen=True, slots=True)
class Forward:
    """What a forward pass made, and what ran."""

    out: Tensor
    """`[B, N, H, Dv]`"""
    lse: Tensor
    """`[B, H, N]`"""
    choice: Choice
    traffic: Traffic
    number: int
    """Of the pass in its ring."""


@dataclass(frozen=True, slots=True)
class Backward:
    """What a backward pass made, and what ran."""

    grads: Three
    """Of query, key and value."""
    choice: Choice
    traffic: Traffic


def forward_pass(run: Run, choice: Choice, seed: int) -> Forward:
    """Output and lse. Where a kernel fails and the settings say so, the next backend starts anew.

    Raises:
        KernelFault: a kernel failed; on a ring it always ends the pass, as ranks must agree.
    """
    chosen = run.chosen(choice)
    while True:
        try:
            return _forward_once(run, chosen, seed)
        except KernelFault as fault:
            if run.group is not None or not chosen.without(fault):
                raise


def _forward_once(run: Run, chosen: Chosen, seed: int) -> Forward:
    query, local, sink, choice = run.tensors.query, run.local, run.tensors.sink, chosen.choice
    if run.virtual is not None and not run.empty:
        staging = _staging(run, choice)
        kernels = run.kernels(chosen, seed, staging.resident.hold)
        out, lse = virtual.forward(run.plans, kernels, staging, query, local, sink)
        return Forward(out, lse, choice, Traffic.of(staging), 0)
    with run.ring(choice) as ring:
        if run.empty:
            out, lse = empty_outputs(query, local.value)
        else:
            out, lse = execute.forward(
                run.plan, run.kernels(chosen, seed), query, local, sink, ring
            )
    return Forward(out, lse, choice, Traffic.of(ring), 0 if ring is None else ring.call)


def backward_pass(run: Run, choice: Choice, seed: int, forward: int, saved: Saved) -> Backward:
    """Gradients of query, key and value. There is something to compute.

    `forward` is the number of the forward pass. A kernel that fails is what it is in a forward
    pass; a choice that was made before is then made anew without it.
    """
    chosen = run.chosen(choice)
    if run.group is None:
        chosen.without_quarantined()
    while True:
        try:
            return _backward_once(run, chosen, seed, forward, saved)
        except KernelFault as fault:
            if run.group is not None or not chosen.without(fault):
                raise


def _backward_once(run: Run, chosen: Chosen, seed: int, forward: int, saved: Saved) -> Backward:
    choice = chosen.choice
    if run.virtual is not None:
        staging = _staging(run, choice)
        kernels = run.kernels(chosen, seed, staging.resident.hold)
        grads = virtual.backward(run.plans, kernels, staging, saved)
        return Backward(grads, choice, Traffic.of(staging))
    with run.ring(choice, forward) as ring:
        grads = execute.backward(run.plan, run.kernels(chosen, seed), saved, ring)
    return Backward(grads, choice, Traffic.of(ring))


def empty_outputs(query: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Output and lse, with nothing written to them."""
    batch, rows, heads, _ = query.shape
    out = query.new_empty(batch, rows, heads, value.shape[3])
    return out, query.new_empty(batch, heads, rows, dtype=accumulation_dtype(query.dtype))


def _staging(run: Run, choice: Choice) -> Staging:
    device = run.operands.device
    return Staging(_exchange(choice.communicator(), device), device)


@lru_cache(maxsize=16)
def _exchange(communicator: Communicator, device: torch.device) -> Exchange:
    """Opened once: streams and page-locked memory are for all calls."""
    return communicator.open(None, device)
