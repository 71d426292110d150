"""One pass of a call: on one rank, over a ring, or over virtual ranks; and what it moved."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ringspan.engine import execute
from ringspan.engine.merge import accumulation_dtype
from ringspan.engine.virtual import loop as virtual
from ringspan.engine.virtual.staging import Staging

if TYPE_CHECKING:
    from ringspan.contracts.communicator import Communicator, Exchange
    from ringspan.engine.choice import Choice
    from ringspan.engine.kernels import Saved
    from ringspan.engine.ring.messages import Ring
    from ringspan.engine.run import Run

__all__ = ["Traffic", "backward_pass", "empty_outputs", "forward_pass"]

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


def forward_pass(run: Run, choice: Choice, seed: int) -> tuple[Tensor, Tensor, Traffic, int]:
    """Output `[B, N, H, Dv]`, lse `[B, H, N]`, what moved, and the pass's number in its ring."""
    query, local, sink = run.tensors.query, run.local, run.tensors.sink
    if run.virtual is not None and not run.empty:
        staging = _staging(run, choice)
        kernels = run.kernels(choice, seed, staging.resident.hold)
        out, lse = virtual.forward(run.plans, kernels, staging, query, local, sink)
        return out, lse, Traffic.of(staging), 0
    with run.ring(choice) as ring:
        if run.empty:
            out, lse = empty_outputs(query, local.value)
        else:
            out, lse = execute.forward(
                run.plan, run.kernels(choice, seed), query, local, sink, ring
            )
    return out, lse, Traffic.of(ring), 0 if ring is None else ring.call


def backward_pass(
    run: Run, choice: Choice, seed: int, forward: int, saved: Saved
) -> tuple[Three, Traffic]:
    """Gradients of query, key and value, and what moved. There is something to compute.

    `forward` is the number of the forward pass.
    """
    if run.virtual is not None:
        staging = _staging(run, choice)
        kernels = run.kernels(choice, seed, staging.resident.hold)
        return virtual.backward(run.plans, kernels, staging, saved), Traffic.of(staging)
    with run.ring(choice, forward) as ring:
        grads = execute.backward(run.plan, run.kernels(choice, seed), saved, ring)
    return grads, Traffic.of(ring)


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
