"""Rotary position embedding (RoFormer, arXiv 2104.09864, equation 15)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = ["RotaryEmbedding"]


class RotaryEmbedding(nn.Module):
    """Rotates pairs of channels by an angle that grows with the token's position.

    Channel `c` is paired with channel `c + D / 2`; pair `c` turns by
    `position * base ** (-2 c / D)`. Angles are computed in float32 (float64 for float64
    inputs), also under 16-bit autocast.

    Args:
        head_dim: `D`, even.
        base: of the geometric progression of frequencies, positive.

    Example:
        >>> import torch
        >>> rotary = RotaryEmbedding(64)
        >>> rotary(torch.randn(1, 10, 8, 64), torch.arange(10)).shape
        torch.Size([1, 10, 8, 64])
    """

    def __init__(self, head_dim: int, base: float = 10000.0) -> None:
        super().__init__()
        if head_dim < 2 or head_dim % 2:
            raise InvalidArgument(
                "head_dim", expected="an even number for rotary embedding", got=str(head_dim)
            )
        if not base > 0:
            raise InvalidArgument("rotary_base", expected="a number > 0", got=repr(base))
        self.head_dim = head_dim
        self.base = base

    def forward(
        self, x: Float[Tensor, "B N H D"], positions: Int[Tensor, " N"]
    ) -> Float[Tensor, "B N H D"]:
        """Rotates `x`, whose rows stand at `positions`."""
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        pair = torch.arange(0, self.head_dim, 2, device=x.device, dtype=wide)
        angle = positions.to(x.device, wide)[:, None] * self.base ** (-pair / self.head_dim)
        cos, sin = angle.cos()[:, None].to(x.dtype), angle.sin()[:, None].to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"head_dim={self.head_dim}, base={self.base}"
