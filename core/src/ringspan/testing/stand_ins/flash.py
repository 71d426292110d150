"""What the functions of a FlashAttention package compute, dense or on tiles of many lengths.

What those kernels check is checked, what they read without a check is read that way: a log-sum-exp
by its address, as if it were contiguous. What a window shows is their own, and said by the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import torch

from ringspan.testing.stand_ins.dense import attend, gradients
from ringspan.testing.stand_ins.memory import by_address

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["FlashFormula", "Varlen", "check_as_flash_api"]


def check_as_flash_api(*tensors: Tensor) -> None:
    """As `flash_api.cpp` of FlashAttention 2 and 3 checks them."""
    for x in tensors:
        assert x.dtype == tensors[0].dtype in (torch.float16, torch.bfloat16)
        assert x.stride(-1) == 1
        assert x.shape[-1] == tensors[0].shape[-1] <= 256
        assert x.shape[-1] % 8 == 0
        assert x.shape[0] <= 65535 or x.dim() == 3


@dataclass(frozen=True, eq=False)
class Varlen:
    """Where tiles of many lengths lie: int32 borders `[tiles + 1]`, and the longest tile."""

    queries: Tensor
    keys: Tensor
    longest_query: int
    longest_key: int

    @classmethod
    def of(
        cls, queries: Tensor | None, keys: Tensor | None, longest_query: int, longest_key: int
    ) -> Varlen | None:
        """From the arguments of a function that serves both kinds; None: tiles of one length."""
        if queries is None or keys is None:
            return None
        return cls(queries, keys, longest_query, longest_key)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Rows and keys of each."""
        rows = self._stretches(self.queries, self.longest_query)
        return zip(rows, self._stretches(self.keys, self.longest_key), strict=True)

    @staticmethod
    def _stretches(borders: Tensor, longest: int) -> list[slice]:
        assert borders.dtype == torch.int32
        assert borders.is_contiguous()
        assert len(borders) - 1 <= 65535
        assert int(borders.diff().max()) <= longest
        return [slice(*ends) for ends in pairwise(borders.tolist())]


@dataclass(frozen=True)
class FlashFormula:
    """The formula in the conventions of one such package.

    Tensors are `[B, L, H, D]` and the log-sum-exp float32 `[B, H, Lq]`; `[rows, H, D]` and
    `[H, rows]` where `varlen` is given.

    Example:
        >>> formula = FlashFormula(lambda queries, keys: torch.ones(queries, keys).bool())
        >>> q = torch.randn(2, 4, 3, 8, dtype=torch.float16)
        >>> out, lse = formula.forward(q, q, q, 0.5, ())
        >>> lse.shape
        torch.Size([2, 3, 4])
    """

    shown: Callable[..., Tensor]
    """Which keys the kernel shows, bool `[Lq, Lk]`: of queries, keys and what a window has."""
    check: Callable[..., None] = check_as_flash_api
    """Fails where the kernel would refuse, or misread, what it is given."""
    unseen: float = -torch.inf
    """The log-sum-exp of a query without keys."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        window: tuple[object, ...],
        varlen: Varlen | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Output and log-sum-exp, NaN in rows of no tile."""
        self.check(q, k, v)
        assert scale > 0
        if varlen is None:
            out, lse = attend(q, k, v, self.shown(q.shape[1], k.shape[1], *window), scale)
            return out.to(q.dtype), lse.masked_fill(lse == -torch.inf, self.unseen).float()
        out = q.new_full((*q.shape[:-1], v.shape[-1]), torch.nan)
        lse = torch.full((q.shape[1], q.shape[0]), torch.nan)
        for rows, keys in varlen.tiles():
            tile = (q[None, rows], k[None, keys], v[None, keys])
            part, part_lse = self.forward(*tile, scale, window)
            out[rows], lse[:, rows] = part[0], part_lse[0]
        return out, lse

    def backward(
        self,
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        into: tuple[Tensor, Tensor, Tensor],
        scale: float,
        window: tuple[object, ...],
        varlen: Varlen | None = None,
    ) -> None:
        """Writes the gradients of query, key and value over `into`."""
        self.check(q, k, v, grad_out, out, *into)
        assert scale > 0
        assert lse.dtype == torch.float32
        dq, dk, dv = into
        if varlen is None:
            batch, queries, heads, _ = q.shape
            there = by_address(lse, (batch, heads, queries))
            seen = self.shown(queries, k.shape[1], *window)
            found = gradients(grad_out, q, k, v, out, there, seen, scale)
            for grad, value in zip(into, found, strict=True):
                grad.copy_(value)
            return
        lse = by_address(lse, (q.shape[1], q.shape[0]))
        for rows, keys in varlen.tiles():
            self.backward(
                *(grad_out[None, rows], q[None, rows], k[None, keys], v[None, keys]),
                *(out[None, rows], lse[None, :, rows].contiguous()),
                (dq[None, rows], dk[None, keys], dv[None, keys]), scale, window,
            )  # fmt: skip
