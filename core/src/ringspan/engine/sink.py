"""Sinks: logits that take part in a row's normaliser and bring no value (semantics, section 1)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.engine.delta import deltas
from ringspan.engine.merge import accumulation_dtype

if TYPE_CHECKING:
    from torch import Tensor

    from ringspan.plan.steps import Plan

__all__ = ["grad_sink", "sink_logits"]


def sink_logits(plan: Plan, sink: Tensor | None, query: Tensor) -> Tensor | None:
    """The sink of each head and query row, `[H, N]` or `[H, 1]`; None: there is none.

    The pattern's own keys of score 0 count as one key with the logarithm of their number.
    """
    dtype = accumulation_dtype(query.dtype)
    learned = None if sink is None else sink.to(dtype).unsqueeze(-1)
    if plan.null_keys is None:
        return learned
    counted = plan.null_keys.on(query.device).to(dtype).log()
    return counted if learned is None else torch.logaddexp(learned, counted)


def grad_sink(sink: Tensor, grad_out: Tensor, out: Tensor, lse: Tensor) -> Tensor:
    """`dz_h = -sum_i exp(z_h - LSE_i) <dO_i, O_i>` over this rank's rows.

    `grad_out` and `out` are `[B, N, H, Dv]`; `lse` `[B, H, N]` is final, -inf or +inf where a row
    has no sink.
    """
    dtype = lse.dtype
    share = torch.exp(sink.to(dtype)[:, None] - lse.masked_fill(lse == -torch.inf, torch.inf))
    total = -(share * deltas(grad_out, out, dtype)).sum((0, 2))
    return total.to(sink.dtype)
