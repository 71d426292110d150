"""Softmax attention and its gradient, written down as the formulas are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Grads, Mask, TileOutput

from ringspan_manual.chunks import Chunk, chunks
from ringspan_manual.grouping import (
    accumulation_dtype,
    grouped,
    grouped_rows,
    heads_first,
    ungrouped,
)
from ringspan_manual.visible import hidden_keys, kept_share

if TYPE_CHECKING:
    from jaxtyping import Float
    from ringspan.contracts import Dropout
    from torch import Tensor

__all__ = ["attend", "attend_backward"]


def attend(
    query: Float[Tensor, "B Lq H D"],
    key: Float[Tensor, "B Lk Hkv D"],
    value: Float[Tensor, "B Lk Hkv Dv"],
    mask: Mask,
    scale: float,
    dropout: Dropout | None = None,
) -> TileOutput:
    """`out = softmax(scale q k) v` and each row's log-sum-exp, a chunk of rows at a time.

    With dropout, `out` is of the probabilities that it keeps, divided by `1 - p`; the
    log-sum-exp is that of all keys.

    Example:
        >>> from ringspan.contracts import CAUSAL
        >>> q = k = v = torch.ones(1, 3, 1, 2)
        >>> attend(q, k, v, CAUSAL, scale=0.0).lse.exp().round()
        tensor([[[1., 2., 3.]]])
    """
    batch, length, heads, _ = query.shape
    keys, kv_heads = key.shape[1:3]
    K, V = heads_first(key), heads_first(value)
    out = query.new_zeros(batch, length, heads, value.shape[-1])
    lse = query.new_full((batch, heads, length), -torch.inf, dtype=K.dtype)
    for chunk in chunks(mask, batch, heads, length, keys):
        here, there = _places(chunk)
        weights = _scores(grouped(query[here], kv_heads), K[there], mask, chunk, scale)
        # A row without keys has a maximum of -inf; 0 in its place makes its weights zero, not NaN.
        top = weights.amax(-1, keepdim=True)
        top.masked_fill_(top == -torch.inf, 0.0)
        weights.sub_(top).exp_()
        total = weights.sum(-1, keepdim=True)
        if dropout is not None:
            weights.mul_(kept_share(dropout, chunk, kv_heads, weights.dtype))
        # The largest weight is 1, so a total below 1 is the total 0 of a row without keys.
        out[here] = ungrouped((weights @ V[there]).div_(total.clamp_min(1.0)), chunk.length)
        lse[chunk.tiles, :, chunk.rows] = (top + total.log()).view(-1, heads, chunk.length)
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
    dropout: Dropout | None = None,
) -> Grads:
    """These keys' share of the gradients, given the final `out` and `lse`.

    With `P = exp(s - lse)`, `M` what dropout leaves of a probability (0 or `1 / (1 - p)`; 1
    without dropout) and `delta = <dO, O>`: `dV = (M P)' dO`, `dS = scale P (M dO V' - delta)`,
    `dQ = dS K`, `dK = dS' Q`. The result is in float32 (float64 for float64 inputs).
    """
    batch, length, heads, _ = query.shape
    keys, kv_heads = key.shape[1:3]
    K, V = heads_first(key), heads_first(value)
    grad_query = query.new_zeros(query.shape, dtype=accumulation_dtype(query.dtype))
    grad_K, grad_V = torch.zeros_like(K), torch.zeros_like(V)
    for chunk in chunks(mask, batch, heads, length, keys):
        here, there = _places(chunk)
        Q, dO, attended = (grouped(x[here], kv_heads) for x in (query, grad_out, out))
        final = grouped_rows(lse[chunk.tiles, :, chunk.rows], kv_heads)
        P = _scores(Q, K[there], mask, chunk, scale).sub_(final).exp_()
        delta = (dO * attended).sum(-1, keepdim=True)
        dP = dO @ V[there].mT
        if dropout is None:
            grad_V[there] += P.mT @ dO
        else:
            M = kept_share(dropout, chunk, kv_heads, P.dtype)
            dP.mul_(M)
            grad_V[there] += M.mul_(P).mT @ dO
        dS = dP.sub_(delta).mul_(P).mul_(scale)
        grad_query[here] = ungrouped(dS @ K[there], chunk.length)
        grad_K[there] += dS.mT @ Q
    return Grads(grad_query, grad_K.transpose(1, 2), grad_V.transpose(1, 2))


def _places(chunk: Chunk) -> tuple[tuple[slice, slice], tuple[slice, slice, slice]]:
    """Where the chunk's rows lie in `[B, L, H, D]`, and its keys in `[B, K, S, D]`."""
    return (chunk.tiles, chunk.rows), (chunk.tiles, slice(None), chunk.keys)


def _scores(
    query: Float[Tensor, "B K G*R D"],
    key: Float[Tensor, "B K S D"],
    mask: Mask,
    chunk: Chunk,
    scale: float,
) -> Float[Tensor, "B K G*R S"]:
    """`scale * <q, k>`, and -inf where the key is hidden."""
    result = (query @ key.mT).mul_(scale)
    hidden = hidden_keys(mask, chunk, key.shape[1], key.device)
    if hidden is not None:
        torch.unflatten(result, 2, (-1, chunk.length)).masked_fill_(hidden, -torch.inf)
    return result
