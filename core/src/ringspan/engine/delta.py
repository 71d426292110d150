"""`Delta_i = <dO_i, O_i>`, which every piece's backward and the sink's gradient start from."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["deltas"]

_ELEMENTS_AT_ONCE = 2**25


def deltas(grad_out: Tensor, out: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, H, N]` from `[B, N, H, Dv]` each, summed in `dtype`.

    Some rows at a time, so that no wide copy of either tensor is in memory.
    """
    batch, rows, heads, width = out.shape
    found = out.new_empty(batch, heads, rows, dtype=dtype)
    for some in _slices(rows, batch * heads * width):
        wide = (x[:, some].to(dtype) for x in (grad_out, out))
        found[..., some] = torch.einsum("bnhd,bnhd->bhn", *wide)
    return found


def _slices(rows: int, row: int) -> Iterator[slice]:
    step = max(1, _ELEMENTS_AT_ONCE // max(1, row))
    return (slice(first, first + step) for first in range(0, rows, step))
