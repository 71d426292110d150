"""One dilated attention problem as data, with its random tensors; needs torch alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch

from ringspan.testing.multiplicity import dilated

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DTYPES", "Configuration", "Inputs", "Shapes"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


class Inputs(NamedTuple):
    """Random tensors of a configuration."""

    q: Tensor
    k: Tensor
    v: Tensor
    grad_out: Tensor


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """The sizes of an attention problem, and its random tensors."""

    N: int
    heads: int = 1
    kv_heads: int = 1
    head_dim: int = 4
    value_head_dim: int = 4
    batch: int = 1
    causal: bool = False
    dtype: torch.dtype = torch.float32
    seed: int = 0

    @property
    def queries(self) -> int:
        """Number of queries."""
        return self.N

    def inputs(self) -> Inputs:
        """q, k, v and an upstream gradient: normal, the same ones for the same configuration."""
        generator = torch.Generator().manual_seed(self.seed)
        shapes = (
            (self.queries, self.heads, self.head_dim),
            (self.N, self.kv_heads, self.head_dim),
            (self.N, self.kv_heads, self.value_head_dim),
            (self.queries, self.heads, self.value_head_dim),
        )
        return Inputs(
            *(
                torch.randn(self.batch, *shape, generator=generator).to(self.dtype)
                for shape in shapes
            )
        )


@dataclass(frozen=True, kw_only=True)
class Configuration(Shapes):
    """One dilated attention problem. A failing one is printed whole and can be pasted back."""

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]
    head_offsets: str = "modulo"

    def multiplicity(self) -> Tensor:
        """How often each query sees each key, `[heads, N, N]`."""
        return dilated(
            self.N,
            self.heads,
            self.kv_heads,
            self.segment_lengths,
            self.dilation_rates,
            self.head_offsets,
            self.causal,
        )
