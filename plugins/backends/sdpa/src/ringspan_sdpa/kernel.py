"""The two operators of PyTorch's CPU flash kernel, typed. Tensors are `[B, H, L, D]` here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["cpu_backward", "cpu_forward"]


def cpu_forward(
    query: Float[Tensor, "B H Lq D"],
    key: Float[Tensor, "B Hkv Lk D"],
    value: Float[Tensor, "B Hkv Lk D"],
    *,
    causal: bool = False,
    bias: Float[Tensor, "#B #H Lq Lk"] | None = None,
    scale: float,
) -> tuple[Float[Tensor, "B H Lq D"], Float[Tensor, "B H Lq"]]:
    """Output and log-sum-exp. A bias is float64 for float64 inputs and float32 otherwise."""
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, causal, attn_mask=bias, scale=scale
    )
    return out, lse


def cpu_backward(
    grad_out: Float[Tensor, "B H Lq D"],
    query: Float[Tensor, "B H Lq D"],
    key: Float[Tensor, "B Hkv Lk D"],
    value: Float[Tensor, "B Hkv Lk D"],
    out: Float[Tensor, "B H Lq D"],
    lse: Float[Tensor, "B H Lq"],
    *,
    causal: bool = False,
    bias: Float[Tensor, "#B #H Lq Lk"] | None = None,
    scale: float,
) -> tuple[Float[Tensor, "B H Lq D"], Float[Tensor, "B Hkv Lk D"], Float[Tensor, "B Hkv Lk D"]]:
    """Gradients of query, key and value for the given, possibly global, `out` and `lse`."""
    dq, dk, dv = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
        grad_out,
        query,
        key,
        value,
        out,
        lse.contiguous(),
        0.0,
        causal,
        attn_mask=bias,
        scale=scale,
    )
    return dq, dk, dv
