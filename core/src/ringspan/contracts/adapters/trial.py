"""A tiny real call, forward and backward, compared with the formula in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.contracts import CAUSAL, Availability

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ringspan.contracts import AttentionBackend

__all__ = ["trial"]

LENGTH, WIDTH = 16, 16
SCALE = 0.25
COARSE = 0.05
"""Far above rounding in 16 bits, far below what a wrong layout or mask gives."""


def trial(backend: AttentionBackend, device: torch.device, dtype: torch.dtype) -> Availability:
    """Whether `backend` really runs on `device`: usable, or which result was wrong.

    An exception of the kernel is left to the caller, which records it as a fault.
    """
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad_out = (
        torch.randn(1, LENGTH, 2, WIDTH, generator=generator).to(device, dtype) for _ in range(4)
    )
    out, lse = backend.forward(q, k, v, mask=CAUSAL, scale=SCALE)
    grads = backend.backward(grad_out, q, k, v, out, lse, mask=CAUSAL, scale=SCALE)
    expected = _formula(*(x.detach().double().cpu() for x in (q, k, v, grad_out)))
    names = ("out", "lse", "grad_query", "grad_key", "grad_value")
    for name, x, exact in zip(names, (out, lse, *grads), expected, strict=True):
        error = (x.double().cpu() - exact).abs().max().item()
        if not error <= COARSE * exact.abs().max().item():
            return Availability.no(
                f"a tiny call returned a wrong {name}: off by {error:.2g}",
                remedy="report it with the output of `ringspan doctor --json`",
                version=torch.__version__,
            )
    return Availability.yes(version=torch.__version__)


def _formula(
    q: Float[Tensor, "B L H D"],
    k: Float[Tensor, "B L H D"],
    v: Float[Tensor, "B L H D"],
    grad_out: Float[Tensor, "B L H D"],
) -> tuple[Tensor, ...]:
    """Causal attention, its log-sum-exp and its gradients, written out."""
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * SCALE
    scores.masked_fill_(hidden, -torch.inf)
    lse = scores.logsumexp(-1)
    P = (scores - lse[..., None]).exp()
    out = torch.einsum("bhqk,bkhd->bqhd", P, v)
    delta = (grad_out * out).sum(-1).transpose(1, 2)[..., None]
    dS = P * (torch.einsum("bqhd,bkhd->bhqk", grad_out, v) - delta) * SCALE
    return (
        out,
        lse,
        torch.einsum("bhqk,bkhd->bqhd", dS, k),
        torch.einsum("bhqk,bqhd->bkhd", dS, q),
        torch.einsum("bhqk,bqhd->bkhd", P, grad_out),
    )
