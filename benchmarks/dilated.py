"""One call of `Dilated` whose tiles are all of one length, ours and in the published steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import ringspan as rs
import torch
import torchscale_style
from bare import Shape
from ringspan.contracts import AttentionBackend
from torch import Tensor

__all__ = ["Dilated", "kernel_of_last_run"]


@dataclass(frozen=True)
class Dilated:
    """Segments of `tile`, `2 tile`, .. `16 tile` tokens at rates 1, 2, .. 16."""

    tokens: int
    tile: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    causal: bool
    branches: int = 5

    @property
    def segment_lengths(self) -> tuple[int, ...]:
        return tuple(self.tile << branch for branch in range(self.branches))

    @property
    def dilation_rates(self) -> tuple[int, ...]:
        return tuple(1 << branch for branch in range(self.branches))

    @property
    def pattern(self) -> rs.Dilated:
        """With torchscale's offsets, so that both compute the same."""
        return rs.Dilated(self.segment_lengths, self.dilation_rates, head_offsets="blocked")

    @property
    def dense(self) -> Shape:
        """A batch of tiles, large enough to fill a GPU."""
        batch = 16 if self.device.type == "cuda" else 1
        heads, head_dim = self.heads, self.head_dim
        return Shape(batch, self.tile, heads, head_dim, self.dtype, self.device, self.causal)

    def __str__(self) -> str:
        return f"{self.tokens} tokens {'causal' if self.causal else 'full'}"

    def tensors(self) -> list[Tensor]:
        """q, k, v that want gradients, and an upstream gradient."""
        whole = Shape(
            1, self.tokens, self.heads, self.head_dim, self.dtype, self.device, self.causal
        )
        *leaves, grad = whole.tensors()
        return [*(x.requires_grad_() for x in leaves), grad]

    def flops(self) -> float:
        """Kept pairs only, forward and backward."""
        q = torch.empty(1, self.tokens, self.heads, self.head_dim, device="meta", dtype=self.dtype)
        found = rs.explain(q, q, q, pattern=self.pattern, causal=self.causal)
        return 3.5 * found.flops

    def ours(self, tensors: list[Tensor], **options: Any) -> Callable[[], object]:
        """Forward and backward through the front door."""
        *leaves, grad = tensors
        pattern, causal = self.pattern, self.causal

        def work() -> object:
            out = rs.attention(*leaves, pattern=pattern, causal=causal, **options)
            return torch.autograd.grad(out, leaves, grad)

        return work

    def theirs(self, tensors: list[Tensor], kernel: AttentionBackend) -> Callable[[], object]:
        """Forward and backward in the published steps."""
        *leaves, grad = tensors
        branches = self.segment_lengths, self.dilation_rates

        def work() -> object:
            out = torchscale_style.attention(*leaves, *branches, causal=self.causal, kernel=kernel)
            return torch.autograd.grad(out, leaves, grad)

        return work


def kernel_of_last_run() -> str:
    """The name of the backend of the last call's tiles."""
    run = rs.last_run()
    assert run is not None
    return next(d.chosen for name, d in run.decisions.items() if name.startswith("backend"))
