"""FlexAttention, compiled once for each kind of mask and class of shapes, and its gradients.

Tensors are `[B, H, L, D]` here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, BlockMask, flex_attention

if TYPE_CHECKING:
    from jaxtyping import Float

__all__ = ["Attention", "Shapes", "compiled", "gradients"]

Attention = Callable[[Tensor, Tensor, Tensor, BlockMask | None, float], tuple[Tensor, Tensor]]
"""Query, key, value, mask and scale to the output and its log-sum-exp, the natural one."""
OPTIONS: Any = {"FLOAT32_PRECISION": "'ieee'"}
"""Products of float32 inputs are not rounded to fewer bits, whatever is set for matrix products."""


class Shapes(NamedTuple):
    """What is compiled in. Lengths are not: they become variables once they change.

    torch.compile compiles again where a length is of a special size, and refuses to do so many
    times. Each class of lengths is therefore a kernel of its own.
    """

    mask: str
    heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    scale: float
    special: tuple[bool, ...]
    trained: bool


def _attend(
    query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask | None, scale: float
) -> tuple[Tensor, Tensor | None]:
    out, aux = flex_attention(
        query,
        key,
        value,
        block_mask=block_mask,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
        kernel_options=OPTIONS,
        return_aux=AuxRequest(lse=True),
    )
    return out, aux.lse


@cache
def compiled(shapes: Shapes) -> Attention:
    """The kernel as a function that returns the output and its log-sum-exp.

    It is compiled whole or raises: uncompiled, FlexAttention would hold all scores.
    """
    # torch.compile counts what it compiles by code object, and gives up after a few.
    code = _attend.__code__.replace(co_name=f"attend_{abs(hash(shapes))}")
    fresh: Any = FunctionType(code, _attend.__globals__, code.co_name)
    attention: Attention = torch.compile(fresh, fullgraph=True)
    return attention


def gradients(
    attention: Attention,
    grad_out: Float[Tensor, "B H Lq D"],
    query: Float[Tensor, "B H Lq D"],
    key: Float[Tensor, "B Hkv Lk D"],
    value: Float[Tensor, "B Hkv Lk D"],
    out: Float[Tensor, "B H Lq D"],
    lse: Float[Tensor, "B H Lq"],
    block_mask: BlockMask | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """This tile's share of the gradients for a final `out` and `lse`, by the kernel's autograd.

    The kernel knows its own keys alone, with `P` and `out'`, `lse'`. The final weights of these
    keys are `w P` with `w = exp(lse' - lse)`, and the gradients

        dV = (w P)^T dO
        dS = w P (<dO, v> - <dO, out>)

    are its own for the upstream gradients `w dO` of `out'` and

        w (<dO, out'> - <dO, out>)

    of `lse'`. So the forward is computed once more, which needs nothing but public functions.
    """
    with torch.enable_grad():
        q, k, v = (x.detach().requires_grad_() for x in (query, key, value))
        own_out, own_lse = attention(q, k, v, block_mask, scale)
    wide = lse.dtype
    share = torch.exp(own_lse.detach().to(wide) - lse).unsqueeze(-1)
    grad = (grad_out.to(wide) * share).to(grad_out.dtype)
    # From the rounded gradient, as the kernel sees it: what it subtracts for its own output is
    # then taken back to the last bit.
    own = (grad.to(wide) * own_out.detach().to(wide)).sum(-1)
    final = (grad_out.to(wide) * out.to(wide) * share).sum(-1)
    upstream = (grad, (own - final).to(own_lse.dtype))
    dq, dk, dv = torch.autograd.grad((own_out, own_lse), (q, k, v), upstream)
    return dq, dk, dv
