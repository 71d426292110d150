"""Merges partial results by their log-sum-exp (semantics: the one formula, section 1).

    LSE = logaddexp(LSE_a, LSE_b)
    O   = O_a exp(LSE_a - LSE) + O_b exp(LSE_b - LSE)

with both-empty rows guarded: -inf with -inf gives zero weights, never NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ringspan.engine.rows import Selection

__all__ = ["Accumulator", "accumulation_dtype", "merge_"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def merge_(out: Tensor, lse: Tensor, piece_out: Tensor, piece_lse: Tensor) -> None:
    """Merges a piece into `out` and `lse`, in place. `lse` has a last dimension of one."""
    total = torch.logaddexp(lse, piece_lse)
    # Where both are empty the difference would be inf - inf; any finite number serves.
    finite = torch.where(total == -torch.inf, 0.0, total)
    out.mul_(torch.exp(lse - finite))
    out.add_(piece_out * torch.exp(piece_lse - finite))
    lse.copy_(total)


class Accumulator:
    """Output and log-sum-exp of one rank's queries while pieces arrive.

    Args:
        out: `[B, N, H, Dv]`, uninitialised where every row is first written (`covered`).
        covered: whether every row is first written by a piece marked as first.
    """

    def __init__(self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype, covered: bool):
        batch, rows, heads, _ = shape
        self.out = torch.empty(shape, dtype=dtype, device=like.device)
        self.lse = torch.empty(
            (batch, heads, rows), dtype=accumulation_dtype(like.dtype), device=like.device
        )
        if not covered:
            self.out.zero_()
            self.lse.fill_(-torch.inf)

    def put(self, rows: Selection, out: Tensor, lse: Tensor, *, first: bool) -> None:
        """Takes a piece: `out` `[B * T, L, H, Dv]` and `lse` `[B * T, H, L]` of some rows."""
        batch = self.out.shape[0]
        piece = rows.split(out, batch)
        piece_lse = rows.split(lse.transpose(1, 2).unsqueeze(-1), batch)
        lse_BNH1 = self.lse.transpose(1, 2).unsqueeze(-1)
        if first:
            rows.write(self.out, piece)
            rows.write(lse_BNH1, piece_lse)
            return
        merged, merged_lse = rows.view(self.out), rows.view(lse_BNH1)
        merge_(merged, merged_lse, piece, piece_lse)
        rows.settle(self.out, merged)
        rows.settle(lse_BNH1, merged_lse)
