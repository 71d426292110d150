"""Linear maps between ranks, whose gradients are a convention and not a derivation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["stated"]

Map = Callable[[Tensor], Tensor]


def stated(x: Tensor, there: Map, back: Map) -> Tensor:
    """`there(x)`, with `back(grad)` as the gradient of `x`.

    What a gradient is when several processes compute parts of one loss depends on what they do
    with it afterwards, so each use of this says it.
    """
    result: Tensor = _Stated.apply(x, there, back)  # type: ignore[no-untyped-call]
    return result


class _Stated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Map, back: Map) -> Tensor:
        ctx.back = back
        return there(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.back(grad), None, None
