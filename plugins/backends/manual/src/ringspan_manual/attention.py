"""Softmax attention and its gradient, written down as the formulas are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Grads, Mask, TileOutput

from ringspan_manual.chunks import hidden_keys, row_chunks, scores
from ringspan_manual.grouping import (
    accumulation_dtype,
    grouped,
    grouped_rows,
    heads_first,
    ungrouped,
)

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["attend", "attend_backward"]


def attend(
    query: Float[Tensor, "B Lq H D"],
    key: Float[Tensor, "B Lk Hkv D"],
    value: Float[Tensor, "B Lk Hkv Dv"],
    mask: Mask,
    scale: float,
) -> TileOutput:
    """`out = softmax(scale q k) v` and each row's log-sum-exp, a chunk of rows at a time.

    Example:
        >>> from ringspan.contracts import CAUSAL
        >>> q = k = v = torch.ones(1, 3, 1, 2)
        >>> attend(q, k, v, CAUSAL, scale=0.0).lse.exp()
        tensor([[[1.0000, 2.0000, 3.0000]]])
    """
    batch, length, heads, _ = query.shape
    keys, kv_heads = key.shape[1:3]
    K, V = heads_first(key), heads_first(value)
    out = query.new_empty(batch, length, heads, value.shape[-1])
    lse = query.new_empty(batch, heads, length, dtype=accumulation_dtype(query.dtype))
    for rows in row_chunks(query, keys):
        hidden = hidden_keys(mask, query, rows, keys, kv_heads)
        weights = scores(grouped(query[:, rows], kv_heads), K, hidden, scale)
        # A row without keys has a maximum of -inf; 0 in its place makes its weights zero, not NaN.
        top = weights.amax(-1, keepdim=True)
        top.masked_fill_(top == -torch.inf, 0.0)
        weights.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        # The largest weight is 1, so a total below 1 is the total 0 of a row without keys.
        out[:, rows] = ungrouped((weights @ V).div_(total.clamp_min(1.0)), rows.stop - rows.start)
        lse[..., rows] = (top + total.log()).view(batch, heads, -1)
    return TileOutput(out, lse)


def attend_backward(
    grad_out: Float[Tensor, "B Lq H Dv"],
    query: Float[Tensor, "B Lq H D"],
    key: Float[Tensor, "B Lk Hkv D"],
    value: Float[Tensor, "B Lk Hkv Dv"],
    out: Float[Tensor, "B Lq H Dv"],
    lse: Float[Tensor, "B H Lq"],
    mask: Mask,
    scale: float,
) -> Grads:
    """These keys' share of the gradients, given the final `out` and `lse`.

    With `P = exp(s - lse)` and `delta = <dO, O>`: `dV = P' dO`, `dS = scale P (dO V' - delta)`,
    `dQ = dS K`, `dK = dS' Q`. The result is in float32 (float64 for float64 inputs).
    """
    keys, kv_heads = key.shape[1:3]
    K, V = heads_first(key), heads_first(value)
    grad_query = torch.empty_like(query, dtype=K.dtype, memory_format=torch.contiguous_format)
    grad_K, grad_V = torch.zeros_like(K), torch.zeros_like(V)
    for rows in row_chunks(query, keys):
        hidden = hidden_keys(mask, query, rows, keys, kv_heads)
        Q, dO, attended = (grouped(x[:, rows], kv_heads) for x in (query, grad_out, out))
        P = scores(Q, K, hidden, scale).sub_(grouped_rows(lse[..., rows], kv_heads)).exp_()
        grad_V += P.mT @ dO
        delta = (dO * attended).sum(-1, keepdim=True)
        dS = (dO @ V.mT).sub_(delta).mul_(P).mul_(scale)
        grad_query[:, rows] = ungrouped(dS @ K, rows.stop - rows.start)
        grad_K += dS.mT @ Q
    return Grads(grad_query, grad_K.transpose(1, 2), grad_V.transpose(1, 2))
