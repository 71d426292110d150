"""The plain kernel of a dtype: what anybody would write, without blocks, pieces or tricks.

Scores and softmax are in float32 (float64 for float64), all other products in the dtype: their
operands are rounded to it, and so is what they return. Its error against the formula is what
rounding to that dtype costs, and an exact kernel stays near it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.testing.formula import (
    NOTHING,
    Extras,
    ReferenceResult,
    check_shapes,
    fold_heads,
    spread_heads,
)

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = ["plain"]


def plain(
    q: Float[Tensor, "B Nq H D"],
    k: Float[Tensor, "B Nk Hkv D"],
    v: Float[Tensor, "B Nk Hkv Dv"],
    multiplicity: Int[Tensor, "H Nq Nk"],
    *,
    scale: float | None = None,
    sink: Float[Tensor, " H"] | Float[Tensor, "H Nq"] | None = None,
    grad_out: Float[Tensor, "B Nq H Dv"] | None = None,
    extras: Extras = NOTHING,
    dtype: torch.dtype | None = None,
) -> ReferenceResult:
    """Attention and its gradients as a plain kernel of `dtype` computes them.

    Arguments and errors are those of `reference`; `dtype` is the query's by default. `lse` and
    the sink's gradient are in float32 (float64 for float64).

    Example:
        >>> q = k = v = torch.ones(1, 2, 1, 4, dtype=torch.bfloat16)
        >>> plain(q, k, v, torch.ones(2, 2, dtype=torch.int64)).out.dtype
        torch.bfloat16
    """
    check_shapes(q, k, v, multiplicity, sink, extras)
    dtype = q.dtype if dtype is None else dtype
    wide = torch.promote_types(dtype, torch.float32)
    heads, kv_heads = q.shape[2], k.shape[2]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    Q, K, V = q.to(dtype), spread_heads(k.to(dtype), heads), spread_heads(v.to(dtype), heads)

    scores = scale * torch.einsum("bihd,bjhd->bhij", Q.to(wide), K.to(wide))
    absent = extras.absent(scores[..., 0])
    seen = multiplicity * ~absent[..., None]
    top = scores.masked_fill(seen == 0, -torch.inf).amax(-1)
    z, null_keys = _beside(sink, extras, top, absent)
    top = torch.maximum(top, z)
    top = torch.where(null_keys > 0, top.clamp_min(0.0), top)
    top = top.masked_fill(top == -torch.inf, 0.0)
    # Above the top only where the multiplicity is 0: clamped, since 0 * inf would be NaN.
    weights = seen.to(wide) * (scores - top[..., None]).clamp_max(0.0).exp()
    sink_weight = (z - top).exp()
    Z = weights.sum(-1) + sink_weight + null_keys * (-top).exp().masked_fill(null_keys == 0, 0.0)
    lse = top + Z.log()
    # The total of a row that sees something is at least 1: its largest weight is.
    Z = Z.clamp_min(1.0)
    P = weights / Z[..., None]
    kept = extras.weights(P)
    out = torch.einsum("bhij,bjhe->bihe", (P * kept).to(dtype), V)
    if grad_out is None:
        return ReferenceResult(out, lse)

    dO = grad_out.to(dtype)
    delta = (dO.to(wide) * out.to(wide)).sum(-1).transpose(1, 2)
    dP = torch.einsum("bihe,bjhe->bhij", dO, V).to(wide)
    dS = (scale * P * (kept * dP - delta[..., None])).to(dtype)
    dsink = None
    if sink is not None:
        dsink = -(sink_weight / Z * delta).sum(0)
        dsink = dsink.sum(-1) if sink.dim() == 1 else dsink
    return ReferenceResult(
        out,
        lse,
        torch.einsum("bhij,bjhd->bihd", dS, K),
        fold_heads(torch.einsum("bhij,bihd->bjhd", dS, Q), kv_heads),
        fold_heads(torch.einsum("bhij,bihe->bjhe", (P * kept).to(dtype), dO), kv_heads),
        dsink,
    )


def _beside(
    sink: Tensor | None, extras: Extras, like: Tensor, absent: Tensor
) -> tuple[Tensor, Tensor]:
    """The sink's logit and the number of null keys of each row; -inf and 0 where it has none."""
    z = torch.full_like(like, -torch.inf)
    if sink is not None:
        z = sink.to(like).reshape(like.shape[1], -1).expand_as(like)
    null_keys = torch.zeros_like(like)
    if extras.null_keys is not None:
        null_keys = extras.null_keys.to(like).expand_as(like)
    return z.masked_fill(absent, -torch.inf), null_keys.masked_fill(absent, 0)
