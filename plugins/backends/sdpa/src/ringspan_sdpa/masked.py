"""Any mask on the CPU kernel: its calls, piece by piece, merged by their log-sum-exp."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import torch
from ringspan.contracts.adapters.arguments import lse_dtype

from ringspan_sdpa.kernel import cpu_backward, cpu_forward
from ringspan_sdpa.pieces import Block, blocks

if TYPE_CHECKING:
    from jaxtyping import Float
    from ringspan.contracts import Mask
    from torch import Tensor

__all__ = ["attend_masked", "attend_masked_backward"]


def attend_masked(
    query: Float[Tensor, "B H Lq D"],
    key: Float[Tensor, "B Hkv Lk D"],
    value: Float[Tensor, "B Hkv Lk D"],
    mask: Mask,
    scale: float,
) -> tuple[Float[Tensor, "B H Lq D"], Float[Tensor, "B H Lq"]]:
    """Output and log-sum-exp; a row that sees no key has output 0 and log-sum-exp -inf."""
    out = _rows_first(query, query.dtype)
    lse = query.new_empty(query.shape[:3], dtype=lse_dtype(query.dtype))
    for block in blocks(mask, query, key):
        here = (block.tiles, slice(None), block.rows)
        if block.pieces:
            out[here], lse[here] = _attend_block(block, query[here], key, value, scale)
        else:
            out[here], lse[here] = 0.0, -torch.inf
    return out, lse


def _attend_block(
    block: Block,
    query: Float[Tensor, "b H rows D"],
    key: Float[Tensor, "B Hkv Lk D"],
    value: Float[Tensor, "B Hkv Lk D"],
    scale: float,
) -> tuple[Float[Tensor, "b H rows D"], Float[Tensor, "b H rows"]]:
    parts = (
        cpu_forward(query, key[there], value[there], bias=piece.bias, scale=scale)
        for piece in block.pieces
        for there in [(block.tiles, slice(None), piece.keys)]
    )
    out, lse = functools.reduce(_merged, parts)
    if block.empty is not None:
        # The kernel averages the hidden keys of a row that sees none.
        out.masked_fill_(block.empty[..., None], 0.0)
        lse.masked_fill_(block.empty, -torch.inf)
    return out, lse


def _merged(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Two softmaxes over disjoint keys as one, in the dtype of `lse`. Both `lse` are finite."""
    (out_a, lse_a), (out_b, lse_b) = a, b
    lse = torch.logaddexp(lse_a, lse_b)
    share_a, share_b = ((x - lse).exp_()[..., None] for x in (lse_a, lse_b))
    return out_a * share_a + out_b * share_b, lse


def attend_masked_backward(
    grad_out: Float[Tensor, "B H Lq D"],
    query: Float[Tensor, "B H Lq D"],
    key: Float[Tensor, "B Hkv Lk D"],
    value: Float[Tensor, "B Hkv Lk D"],
    out: Float[Tensor, "B H Lq D"],
    lse: Float[Tensor, "B H Lq"],
    mask: Mask,
    scale: float,
) -> tuple[Float[Tensor, "B H Lq D"], Float[Tensor, "B Hkv Lk D"], Float[Tensor, "B Hkv Lk D"]]:
    """Gradients for the given, possibly global, `out` and `lse`, summed in `lse`'s dtype."""
    dq, dk, dv = (_rows_first(x, lse.dtype).zero_() for x in (query, key, value))
    for block in blocks(mask, query, key):
        here = (block.tiles, slice(None), block.rows)
        for piece in block.pieces:
            there = (block.tiles, slice(None), piece.keys)
            part_q, part_k, part_v = cpu_backward(
                grad_out[here],
                query[here],
                key[there],
                value[there],
                out[here],
                lse[here],
                bias=piece.bias,
                scale=scale,
            )
            dq[here] += part_q
            dk[there] += part_k
            dv[there] += part_v
    return dq, dk, dv


def _rows_first(x: Float[Tensor, "B H L D"], dtype: torch.dtype) -> Float[Tensor, "B H L D"]:
    """New memory shaped as `x`, contiguous once transposed back to `[B, L, H, D]`."""
    batch, heads, length, width = x.shape
    return x.new_empty(batch, length, heads, width, dtype=dtype).transpose(1, 2)
