"""LongNet's dilated attention in the steps of the published implementation, on any of our kernels.

Each branch pads the sequence to whole segments and each segment to whole rates, picks the diagonal
that gives every group of heads its offset, and calls a kernel. Its result is spread out to dense
rows again with `diag_embed`; a weighted sum over all branches follows, whose weights are detached.
It is what people have today: written for this comparison from the published algorithm
(LongNet, arXiv 2307.02486; github.com/microsoft/torchscale), on one process and without dropout.

Its output equals `Dilated.torchscale`; where nothing is padded, `Dilated(head_offsets="blocked")`.
Its gradients are not the derivative once a row is in several branches: the weights are detached.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from ringspan.contracts import CAUSAL, FULL, AttentionBackend
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["attention"]

ABSENT = -1e8
"""The log-sum-exp of a row that its branch leaves out."""


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    *,
    causal: bool,
    kernel: AttentionBackend,
) -> Tensor:
    """Dilated attention of `[B, N, H, D]` with blocked offsets; `kernel` computes the segments."""
    branches = []
    for length, rate in zip(segment_lengths, dilation_rates, strict=True):
        sparse = (_gathered(x, length, rate) for x in (query, key, value))
        out, lse = _Kernel.apply(*sparse, causal, kernel)  # type: ignore[no-untyped-call]
        branches.append(_scattered(out, lse, rate, query.shape))
    weights = _weights([lse for _, lse in branches])
    total: Any = 0
    for (out, _), weight in zip(branches, weights, strict=True):
        total = total + out * weight.type_as(out)
    return rearrange(total, "(b h) l d -> b l h d", h=query.shape[2])


class _Kernel(torch.autograd.Function):
    """A kernel's forward and backward, called as flash attention's package calls its own."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, causal: bool, kernel: AttentionBackend
    ) -> tuple[Tensor, Tensor]:
        ctx.kernel = kernel
        ctx.options = {"mask": CAUSAL if causal else FULL, "scale": q.shape[-1] ** -0.5}
        out, lse = kernel.forward(q, k, v, **ctx.options)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        found = ctx.kernel.backward(grads[0], q, k, v, out, lse, **ctx.options)
        dq, dk, dv = (g.to(x.dtype) for g, x in zip(found, (q, k, v), strict=True))
        return dq, dk, dv, None, None


def _gathered(x: Tensor, length: int, rate: int) -> Tensor:
    """`[B, N, H, D]` as `[B * segments, rows, H, D]`: each head's rows at its own offset."""
    heads, length = x.shape[2], min(length, x.shape[1])
    x = pad(x, (0, 0, 0, 0, 0, -x.shape[1] % length))
    x = rearrange(x, "b (n g) h d -> (b n) g h d", g=length)
    x = pad(x, (0, 0, 0, -heads % rate, 0, -length % rate))
    x = rearrange(x, "b (l r1) (r2 h) d -> b l h d r1 r2", r1=rate, r2=rate)
    x = torch.diagonal(x, dim1=4, dim2=5)
    x = rearrange(x, "b l h d r -> b l (r h) d")[:, :, :heads]
    # Heads go to the batch and come back: that is where the published one makes its copy.
    x = rearrange(x, "b l h d -> (b h) l d")
    return rearrange(x, "(b h) l d -> b l h d", h=heads)


def _scattered(out: Tensor, lse: Tensor, rate: int, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """`[B * H, N, D]` and `[B * H, N, 1]`: zeros and `ABSENT` between the rows that were kept."""
    batch, tokens, heads, _ = shape
    out = pad(out, (0, 0, 0, -heads % rate))
    out = rearrange(out, "b l (r h) d -> b l h d r", r=rate)
    out = torch.diag_embed(out, dim1=4, dim2=5)
    out = rearrange(out, "b l h d r1 r2 -> b (r2 h) (l r1) d", r1=rate, r2=rate)[:, :heads]
    lse = pad(lse, (0, 0, 0, -heads % rate), value=ABSENT)
    lse = rearrange(lse, "b (r h) l -> b l h r", r=rate)
    lse = torch.diag_embed(lse, dim1=3, dim2=4)
    lse = lse.masked_fill_(lse == 0, ABSENT)
    lse = rearrange(lse, "b l h r1 r2 -> b (r2 h) (l r1) 1", r1=rate, r2=rate)[:, :heads]
    out = rearrange(out, "(b n) h g d -> (b h) (n g) d", b=batch)
    lse = rearrange(lse, "(b n) h g 1 -> (b h) (n g) 1", b=batch)
    return out[:, :tokens], lse[:, :tokens]


@torch.no_grad()
def _weights(lses: list[Tensor]) -> list[Tensor]:
    """Each branch's share of the softmax's normaliser, row by row."""
    largest = torch.stack(lses).amax(0)
    shares = [torch.exp(lse - largest) for lse in lses]
    total = torch.stack(shares).sum(0)
    return [share / total for share in shares]
