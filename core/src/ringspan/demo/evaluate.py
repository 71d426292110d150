"""The held-out loss, in one process or as this rank's part of a ring."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ringspan.demo.model import ByteModel, summed_loss

if TYPE_CHECKING:
    from ringspan.plan.layout import Layout

__all__ = ["bits_per_byte", "summed_nats"]


@torch.no_grad()
def summed_nats(
    model: ByteModel,
    windows: Tensor,
    *,
    layout: Layout | None = None,
    rank: int = 0,
    group: Any = None,
) -> float:
    """Negative log-likelihood of the targets in `windows` (`[windows, context + 1]`), in float32.

    With a layout, of the targets at this rank's positions only: the ranks' values add up.
    """
    total = 0.0
    for window in windows.long():
        inputs, targets = window[None, :-1], window[None, 1:]
        if layout is not None:
            inputs, targets = (layout.shard(part, rank) for part in (inputs, targets))
        total += summed_loss(model(inputs, layout=layout, group=group), targets).item()
    return total


def bits_per_byte(nats: float, windows: Tensor) -> float:
    """Bits per target from a sum in nats."""
    return nats / windows[:, 1:].numel() / math.log(2)
