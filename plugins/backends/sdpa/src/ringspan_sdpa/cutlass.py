"""The two operators of the memory-efficient kernels, typed. Tensors are `[B, L, H, D]`.

They have no grouped heads: keys and values are repeated, and their gradients summed in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Grads, TileOutput

from ringspan_sdpa.ragged import packed, padded

if TYPE_CHECKING:
    from jaxtyping import Float
    from ringspan.contracts import Lengths
    from torch import Tensor

__all__ = ["LSE_MULTIPLE", "cutlass_backward", "cutlass_forward", "repeated"]

NO_MASK, CAUSAL_FROM_TOP_LEFT = 0, 1
LSE_MULTIPLE = 32
"""The kernel stores a log-sum-exp for this many rows at a time."""


def cutlass_forward(
    query: Float[Tensor, "B Lq H D"],
    key: Float[Tensor, "B Lk Hkv D"],
    value: Float[Tensor, "B Lk Hkv D"],
    *,
    causal: bool,
    scale: float,
    bias: Float[Tensor, "B H Lq Lk"] | None = None,
    lengths: Lengths | None = None,
) -> TileOutput:
    """Output and log-sum-exp, which comes with its rows rounded up, and is cut.

    Args:
        query: tiles of one length, or one batch entry of tiles of many `lengths`.
        key: likewise.
        value: likewise.
        causal: a triangle from the top left.
        scale: of the scores.
        bias: in the query's dtype, added to the scaled scores; never with `lengths`.
        lengths: of ragged tiles.
    """
    group = query.shape[2] // key.shape[2]
    bounds = (None,) * 4 if lengths is None else _arguments(lengths)
    out, lse, *_ = torch.ops.aten._efficient_attention_forward(
        query,
        repeated(key, group),
        repeated(value, group),
        bias,
        *bounds,
        0.0,
        CAUSAL_FROM_TOP_LEFT if causal else NO_MASK,
        True,
        scale=scale,
    )
    if lengths is not None:
        return TileOutput(out, packed(lse, lengths.query_bounds, query.shape[1]))
    return TileOutput(out, lse[..., : query.shape[1]].contiguous())


def cutlass_backward(
    grad_out: Float[Tensor, "B Lq H D"],
    query: Float[Tensor, "B Lq H D"],
    key: Float[Tensor, "B Lk Hkv D"],
    value: Float[Tensor, "B Lk Hkv D"],
    out: Float[Tensor, "B Lq H D"],
    lse: Float[Tensor, "B H Lq"],
    *,
    causal: bool,
    scale: float,
    bias: Float[Tensor, "B H Lq Lk"] | None = None,
    lengths: Lengths | None = None,
) -> Grads:
    """Gradients for the given, possibly global, `out` and `lse`.

    Rows that fill up the log-sum-exp are +inf, so that their weights are zero. The kernel reads
    `out` as contiguous.
    """
    group = query.shape[2] // key.shape[2]
    bounds: tuple[Tensor | None, Tensor | None, int, int]
    if lengths is None:
        bounds = (None, None, query.shape[1], key.shape[1])
        rest = -lse.shape[-1] % LSE_MULTIPLE
        filled = torch.nn.functional.pad(lse, (0, rest), value=torch.inf).contiguous()
    else:
        bounds = _arguments(lengths)
        width = lengths.query_longest + -lengths.query_longest % LSE_MULTIPLE
        filled = padded(lse, lengths.query_bounds, width)
    # Without dropout the state of the random generator is not read.
    seed = offset = torch.empty((), dtype=torch.int64)
    dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
        grad_out,
        query,
        repeated(key, group),
        repeated(value, group),
        bias,
        out.contiguous(),
        *bounds,
        filled,
        0.0,
        seed,
        offset,
        CAUSAL_FROM_TOP_LEFT if causal else NO_MASK,
        False,
        scale=scale,
        # Several splits of the keys add to the query's gradient in any order.
        num_splits_key=1 if torch.are_deterministic_algorithms_enabled() else None,
    )
    return Grads(dq, _summed(dk, group), _summed(dv, group))


def repeated(x: Float[Tensor, "B L Hkv D"], group: int) -> Float[Tensor, "B L H D"]:
    """Each head `group` times."""
    return x if group == 1 else x.repeat_interleave(group, dim=2)


def _summed(x: Float[Tensor, "B L H D"], group: int) -> Float[Tensor, "B L Hkv D"]:
    return x if group == 1 else torch.unflatten(x, 2, (-1, group)).sum(3, dtype=torch.float32)


def _arguments(lengths: Lengths) -> tuple[Tensor, Tensor, int, int]:
    longest = lengths.query_longest, lengths.key_longest
    return lengths.query_bounds, lengths.key_bounds, *longest
