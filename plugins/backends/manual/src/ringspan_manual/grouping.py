"""Heads in groups: the query heads that share a key/value head, side by side.

Shape suffixes in this package: `K` key/value heads, `G` query heads per key/value head,
`R` the rows (queries) of one chunk, `S` its keys.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float, Num
    from torch import Tensor

__all__ = ["accumulation_dtype", "grouped", "grouped_rows", "heads_first", "ungrouped"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of every score and sum: float64 for float64, otherwise float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def heads_first(x: Float[Tensor, "B S K D"]) -> Float[Tensor, "B K S D"]:
    """Keys or values as matrices, one per key/value head, in the accumulation dtype."""
    return x.transpose(1, 2).to(accumulation_dtype(x.dtype)).contiguous()


def grouped(x: Float[Tensor, "B R H D"], kv_heads: int) -> Float[Tensor, "B K G*R D"]:
    """Rows of the query heads that share a key/value head as one matrix, in the accumulation dtype.

    One product with that head's keys then serves the whole group: nothing is expanded.
    """
    x = torch.unflatten(x, 2, (kv_heads, -1)).permute(0, 2, 3, 1, 4)
    return x.to(accumulation_dtype(x.dtype)).flatten(2, 3)


def ungrouped(x: Float[Tensor, "B K G*R D"], rows: int) -> Float[Tensor, "B R H D"]:
    """The inverse of `grouped`."""
    return torch.unflatten(x, 2, (-1, rows)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def grouped_rows(x: Num[Tensor, "B H R"], kv_heads: int) -> Num[Tensor, "B K G*R 1"]:
    """One number per row, laid out as `grouped` lays out the rows."""
    return torch.unflatten(x, 1, (kv_heads, -1)).flatten(2, 3).unsqueeze(-1)
