"""Positions that begin anew in each document."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["restarted"]


def restarted(
    positions: Int[Tensor, "*rows"], lengths: Int[Tensor, " documents"]
) -> Int[Tensor, "*rows"]:
    """Positions within the sequence, counted from the start of their document.

    Args:
        positions: in `0 .. N - 1`.
        lengths: of the documents, which sum to `N`; on the same device.
    """
    starts = lengths.cumsum(0) - lengths
    return positions - starts[torch.searchsorted(starts, positions.contiguous(), right=True) - 1]
