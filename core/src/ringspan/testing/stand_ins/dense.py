"""Attention of a tile and its share of the gradients in float64, all scores at once.

The gradients are those of a kernel: from an output and a log-sum-exp that may be of more keys than
it is given. With `P = exp(S - lse)` and `delta = sum(grad_out * out)`, `dS = P (dP - delta)`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.testing.formula import fold_heads, spread_heads

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["attend", "gradients"]


def attend(
    q: Float[Tensor, "B Lq H D"],
    k: Float[Tensor, "B Lk Hkv D"],
    v: Float[Tensor, "B Lk Hkv Dv"],
    seen: Bool[Tensor, "Lq Lk"],
    scale: float,
) -> tuple[Float[Tensor, "B Lq H Dv"], Float[Tensor, "B H Lq"]]:
    """Output and log-sum-exp; 0 and -inf where a query sees no key.

    Query head `h` reads key/value head `h // (H // Hkv)`.

    Example:
        >>> x = torch.ones(1, 2, 1, 4)
        >>> out, lse = attend(x, x, x, torch.ones(2, 2, dtype=torch.bool).tril(), 0.5)
        >>> lse
        tensor([[[2.0000, 2.6931]]], dtype=torch.float64)
    """
    S = _scores(q, k, seen, scale)
    lse = S.logsumexp(-1)
    P = (S - lse[..., None]).exp().nan_to_num(0.0)
    return torch.einsum("bhqk,bkhd->bqhd", P, spread_heads(v.double(), q.shape[2])), lse


def gradients(
    grad_out: Float[Tensor, "B Lq H Dv"],
    q: Float[Tensor, "B Lq H D"],
    k: Float[Tensor, "B Lk Hkv D"],
    v: Float[Tensor, "B Lk Hkv Dv"],
    out: Float[Tensor, "B Lq H Dv"],
    lse: Float[Tensor, "B H Lq"],
    seen: Bool[Tensor, "Lq Lk"],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Of query, key and value, in their shapes; rows whose `lse` is +inf take no part."""
    heads, kv_heads = q.shape[2], k.shape[2]
    P = (_scores(q, k, seen, scale) - lse[..., None].double()).exp()
    dO = grad_out.double()
    delta = (dO * out.double()).sum(-1).transpose(1, 2)[..., None]
    dP = torch.einsum("bqhd,bkhd->bhqk", dO, spread_heads(v.double(), heads))
    dS = P * (dP - delta) * scale
    return (
        torch.einsum("bhqk,bkhd->bqhd", dS, spread_heads(k.double(), heads)),
        fold_heads(torch.einsum("bhqk,bqhd->bkhd", dS, q.double()), kv_heads),
        fold_heads(torch.einsum("bhqk,bqhd->bkhd", P, dO), kv_heads),
    )


def _scores(q: Tensor, k: Tensor, seen: Tensor, scale: float) -> Tensor:
    K = spread_heads(k.double(), q.shape[2])
    S = torch.einsum("bqhd,bkhd->bhqk", q.double(), K) * scale
    return S.masked_fill(~seen, -torch.inf)
