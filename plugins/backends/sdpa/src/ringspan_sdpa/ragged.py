"""The log-sum-exp of tiles of many lengths: one row after another, or one row of a table per tile.

Which row lies where is computed on the device, so that nothing waits for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = ["packed", "padded"]


def packed(
    lse: Float[Tensor, "tiles H width"], bounds: Int[Tensor, " tiles+1"], rows: int
) -> Float[Tensor, "1 H rows"]:
    """The `rows` of all tiles, one after the other, from a table with a tile in each entry."""
    by_head = lse.transpose(0, 1).flatten(1)
    return by_head.index_select(1, _places(bounds, rows, lse.shape[-1]))[None]


def padded(
    lse: Float[Tensor, "1 H rows"], bounds: Int[Tensor, " tiles+1"], width: int
) -> Float[Tensor, "tiles H width"]:
    """The table of all tiles; entries of no row are +inf."""
    _, heads, rows = lse.shape
    tiles = bounds.shape[0] - 1
    by_head = lse.new_full((heads, tiles * width), torch.inf)
    by_head.index_copy_(1, _places(bounds, rows, width), lse[0])
    return torch.unflatten(by_head, 1, (tiles, width)).transpose(0, 1).contiguous()


def _places(bounds: Int[Tensor, " tiles+1"], rows: int, width: int) -> Int[Tensor, " rows"]:
    row = torch.arange(rows, dtype=bounds.dtype, device=bounds.device)
    tile = torch.searchsorted(bounds[1:], row, right=True)
    return row - bounds.index_select(0, tile) + tile * width
