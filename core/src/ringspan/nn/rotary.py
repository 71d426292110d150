"""Rotary position embedding (RoFormer, arXiv 2104.09864, equation 15)."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import nn

from ringspan.contracts.errors import InvalidArgument
from ringspan.nn.checks import told

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = ["RotaryEmbedding"]


def check_base(name: str, base: object) -> None:
    """Raises `InvalidArgument` unless `base` is a positive number that a float can hold."""
    number = isinstance(base, int | float) and not isinstance(base, bool)
    if not number or not 0 < base <= sys.float_info.max:  # type: ignore[operator]
        raise InvalidArgument(name, expected="a finite number > 0", got=repr(base))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class RotaryEmbedding(nn.Module):
    """Rotates pairs of channels by an angle that grows with the token's position.

    Channel `c` is paired with channel `c + D / 2`; pair `c` turns by
    `position * base ** (-2 c / D)`. Angles are computed in float64, whatever the inputs: in
    float32 they would be 0.04 off after a million tokens. Their cosines and sines are then
    rounded to the inputs' dtype.

    Args:
        head_dim: `D`, even.
        base: of the geometric progression of frequencies, positive and finite.

    Raises:
        InvalidArgument: an argument is wrong; names it.

    Example:
        >>> import torch
        >>> rotary = RotaryEmbedding(64)
        >>> rotary(torch.randn(1, 10, 8, 64), torch.arange(10)).shape
        torch.Size([1, 10, 8, 64])
    """

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if type(head_dim) is not int or head_dim < 2 or head_dim % 2:
            raise InvalidArgument(
                "head_dim", expected="an even integer for rotary embedding", got=repr(head_dim)
            )
        check_base("base", base)
        self.head_dim = head_dim
        self.base = base

    def forward(
        self, x: Float[Tensor, "B N H D"], positions: Int[Tensor, " N"]
    ) -> Float[Tensor, "B N H D"]:
        """Rotates `x`, whose rows stand at `positions`."""
        (rotated,) = self.rotate(positions, x)
        return rotated

    def rotate(
        self, positions: Int[Tensor, " N"], *tensors: Float[Tensor, "B N H D"]
    ) -> tuple[Float[Tensor, "B N H D"], ...]:
        """Rotates tensors of one dtype by the same angles, which are computed once."""
        for x in tensors:
            self._check(x, positions)
        cos, sin = self._turns(positions, tensors[0])
        return tuple(_rotated(x, cos, sin) for x in tensors)

    def _turns(self, positions: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        # Not every GPU computes in float64; those of CUDA do.
        device = "cpu" if like.device.type in ("mps", "xpu") else like.device
        pair = torch.arange(0, self.head_dim, 2, device=device, dtype=torch.float64)
        turns = self.base ** (-pair / self.head_dim)
        angle = positions.to(device, torch.float64)[:, None, None] * turns
        return angle.cos().to(like), angle.sin().to(like)

    def _check(self, x: object, positions: object) -> None:
        if not isinstance(x, torch.Tensor) or x.dim() != 4 or x.shape[-1] != self.head_dim:
            raise InvalidArgument(
                "x", expected=f"a tensor [batch, tokens, heads, {self.head_dim}]", got=told(x)
            )
        if not isinstance(positions, torch.Tensor) or positions.shape != x.shape[1:2]:
            raise InvalidArgument(
                "positions",
                expected=f"a tensor [{x.shape[1]}], one for each token of x",
                got=told(positions),
            )

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"head_dim={self.head_dim}, base={self.base}"
