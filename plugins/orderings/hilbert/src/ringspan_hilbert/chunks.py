"""Long tensors, worked on in pieces that stay in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["in_chunks"]

CHUNK = 16_384
"""Points at a time. Torch runs so few in one thread: starting others would take longer."""


def in_chunks(
    function: Callable[[Sequence[Tensor]], Int[Tensor, " n"]], axes: Sequence[Int[Tensor, " N"]]
) -> Int[Tensor, " N"]:
    """`function(axes)`, int64 `[N]`, a piece at a time on a CPU and at once elsewhere."""
    if axes[0].device.type != "cpu":
        return function(axes)
    result = torch.empty(axes[0].shape, dtype=torch.int64)
    for start in range(0, len(result), CHUNK):
        piece = slice(start, start + CHUNK)
        result[piece] = function([axis[piece] for axis in axes])
    return result
