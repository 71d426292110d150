"""Merges partial results by their log-sum-exp (semantics: the one formula, section 1).

    LSE = logaddexp(LSE_a, LSE_b)
    O   = O_a exp(LSE_a - LSE) + O_b exp(LSE_b - LSE)

The two weights sum to one, so the output moves from `O_a` towards `O_b` by the second: one pass
over memory. Both-empty rows are guarded: -inf with -inf moves nothing, and is never NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ringspan.contracts.backend import TileOutput
from ringspan.contracts.selection import Selection, in_cache
from ringspan.engine.workspace import borrow, give_back

__all__ = ["Accumulator", "Total", "accumulation_dtype", "merge_"]


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def merge_(out: Tensor, lse: Tensor, piece_out: Tensor, piece_lse: Tensor) -> None:
    """Merges a piece into `out` and `lse`, in place. `lse` has a last dimension of one."""
    # From the difference of the two and not from the total, whose rounding grows with its size.
    # An empty piece moves nothing, also where the accumulator is empty and both are -inf.
    gap = torch.where(piece_lse == -torch.inf, -torch.inf, piece_lse - lse)
    weight = torch.sigmoid(gap)
    for part, piece, share in in_cache(out, piece_out, weight):
        part.lerp_(piece.to(part.dtype), share.to(part.dtype))
    lse.copy_(torch.logaddexp(lse, piece_lse))


class Total:
    """A tensor `[B, N, H, D]` that pieces are written and added to, made when first needed.

    Args:
        shape: of the whole tensor.
        like: gives the device.
        dtype: of the sum.
        covered: every row is first written by a piece marked as first, so nothing is zeroed.
    """

    def __init__(
        self, shape: tuple[int, ...], like: Tensor, dtype: torch.dtype, covered: bool
    ) -> None:
        self.dtype = dtype
        self._shape, self._covered = shape, covered
        self._device = like.device
        self._tensor: Tensor | None = None
        self.fresh = True
        """Whether a piece marked as first may be written instead of added."""

    @classmethod
    def around(cls, tensor: Tensor) -> Total:
        """A sum that goes on in a tensor which others add to as well."""
        total = cls(tuple(tensor.shape), tensor, tensor.dtype, covered=True)
        total._tensor, total.fresh = tensor, False
        return total

    @property
    def tensor(self) -> Tensor:
        """What has arrived so far."""
        if self._tensor is None:
            self._tensor = borrow(self._shape, self.dtype, self._device)
            if not self._covered:
                self._tensor.zero_()
        return self._tensor

    def put(self, rows: Selection, piece: Tensor, *, first: bool) -> None:
        """Takes `[B * T, L, H, D]`: written where these rows are untouched, else added."""
        first = first and self.fresh
        whole = first and self._tensor is None and rows.is_all_of(self._shape)
        if whole and piece.dtype == self.dtype:
            # The kernel's own result is the sum so far: no copy.
            self._tensor = piece.reshape(self._shape)
            return
        put = rows.write if first else rows.add
        put(self.tensor, rows.split(piece, self._shape[0]))

    def finish(self, dtype: torch.dtype) -> Tensor:
        """The sum in `dtype`, contiguous as the operator promises to `torch.compile`.

        The total is empty afterwards: of several, no two are in memory in both dtypes.
        """
        total, self._tensor = self.tensor, None
        if dtype == self.dtype:
            return total.contiguous()
        finished = total.to(dtype).contiguous()
        give_back(total)
        return finished


class Accumulator:
    """Output and log-sum-exp of one rank's queries while pieces arrive.

    Args:
        shape: `[B, N, H, Dv]`.
        like: the query.
        dtype: in which the output is summed.
        covered: as of `Total`.
        alone: every row gets one piece at most, so that a kernel may write it where it belongs.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        like: Tensor,
        dtype: torch.dtype,
        covered: bool,
        *,
        alone: bool = False,
    ) -> None:
        batch, rows, heads, _ = shape
        self._out = Total(shape, like, dtype, covered)
        wide = accumulation_dtype(like.dtype)
        self._lse = torch.empty((batch, heads, rows), dtype=wide, device=like.device)
        self._alone = alone
        if not covered:
            self._lse.fill_(-torch.inf)

    @property
    def into(self) -> TileOutput | None:
        """Where a kernel may write its rows directly."""
        return TileOutput(*self.held) if self._alone else None

    @property
    def held(self) -> tuple[Tensor, Tensor]:
        """What is in memory."""
        return self._out.tensor, self._lse

    def put(self, rows: Selection, out: Tensor, lse: Tensor, *, first: bool) -> None:
        """Takes a piece: `out` `[B * T, L, H, Dv]` and `lse` `[B * T, H, L]` of some rows."""
        batch = self._lse.shape[0]
        piece_lse = rows.split(lse.transpose(1, 2).unsqueeze(-1), batch)
        lse_BNH1 = self._lse.transpose(1, 2).unsqueeze(-1)
        if first:
            self._out.put(rows, out, first=True)
            rows.write(lse_BNH1, piece_lse)
            return
        merged, merged_lse = rows.view(self._out.tensor), rows.view(lse_BNH1)
        merge_(merged, merged_lse, rows.split(out, batch), piece_lse)
        rows.settle(self._out.tensor, merged)
        rows.settle(lse_BNH1, merged_lse)

    def finish(self, dtype: torch.dtype, sinks: Tensor | None) -> tuple[Tensor, Tensor]:
        """Output in `dtype` and lse, after keys of value 0 entered each row's normaliser: their
        logits are `[H, N]` or `[H, 1]`."""
        if sinks is not None:
            total = torch.logaddexp(self._lse, sinks)
            share = torch.exp(self._lse - torch.where(total == -torch.inf, 0.0, total))
            self._out.tensor.mul_(share.transpose(1, 2).unsqueeze(-1))
            self._lse = total
        return self._out.finish(dtype), self._lse
