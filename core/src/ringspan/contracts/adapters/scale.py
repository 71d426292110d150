"""Scales that are not above zero, folded into the query; the kernels take none.

They hide a key by a score of -inf, or take a row's maximum, and only then multiply by the scale.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.contracts.adapters.arguments import lse_dtype

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["above_zero", "unfolded"]


def above_zero(
    query: Float[Tensor, "*shape D"], scale: float
) -> tuple[Float[Tensor, "*shape D"], float]:
    """A query and a scale above zero with the same scores.

    Example:
        >>> above_zero(torch.ones(2), -0.5)
        (tensor([-1., -1.]), 0.5)
    """
    if _vanishes(scale, query):
        return torch.zeros_like(query), 1.0
    return (query, scale) if scale > 0 else (-query, -scale)


def unfolded(grad_query: Float[Tensor, "*shape D"], scale: float) -> Float[Tensor, "*shape D"]:
    """The gradient of the query that `above_zero` was given, from that of the one it returned."""
    if _vanishes(scale, grad_query):
        return torch.zeros_like(grad_query)
    return grad_query if scale > 0 else -grad_query


def _vanishes(scale: float, x: Tensor) -> bool:
    """Whether the scale is zero, or may be rounded to it where the kernel computes."""
    return abs(scale) < torch.finfo(lse_dtype(x.dtype)).tiny
