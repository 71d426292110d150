"""Position as rotation and scale (XPos, arXiv 2212.10554), the way torchscale counts it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import nn

from ringspan.contracts.errors import InvalidArgument
from ringspan.nn.rotary import check_base

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = ["XPos"]


class XPos(nn.Module):
    """Turns channels `2c` and `2c + 1` at position `p` of `L` by `p * 10000 ** (-2c / D)`.

    And scales them by `scale[c] ** ((p - ceil(L / 2)) / scale_base)`, keys by its inverse, so
    that a score depends on the distance of its tokens and decays with it. Computed in float64,
    then rounded to the dtype of the inputs. Name in the state dict: `scale`.

    Args:
        head_dim: `D`, even.
        scale_base: the larger, the slower the decay.
    """

    scale: Tensor

    def __init__(
        self,
        head_dim: int,
        scale_base: float = 512,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if head_dim % 2:
            raise InvalidArgument(
                "embed_dim", expected="an even head_dim for XPos", got=f"head_dim {head_dim}"
            )
        check_base("xpos_scale_base", scale_base)
        self.scale_base = scale_base
        channels = torch.arange(0, head_dim, 2, device=device, dtype=dtype or torch.float32)
        self.register_buffer("scale", (channels + 0.4 * head_dim) / (1.4 * head_dim))

    def check(self, longest: int, dtype: torch.dtype) -> None:
        """Refuses sequences so long that scores between their ends leave `dtype`.

        Those grow by up to `(1.4 / 0.4) ** (L / scale_base)`, in channel 0.
        """
        limit = int(self.scale_base * math.log(torch.finfo(dtype).max) / math.log(1.4 / 0.4))
        if longest > limit:
            raise InvalidArgument(
                "xpos_scale_base",
                expected=f"at most {limit} tokens with {self.scale_base} in {dtype}: between the "
                "ends of more, scores overflow",
                got=f"{longest} tokens",
                remedy="Use a wider dtype or shorter sequences",
            )

    def forward(
        self,
        x: Float[Tensor, "B N H D"],
        position: Int[Tensor, " N"],
        length: Int[Tensor, " N"] | int,
        downscale: bool = False,
    ) -> Float[Tensor, "B N H D"]:
        """`length` counts the tokens of the sequence in which each one has its position."""
        exponent = (position - (length - length // 2)).double()[:, None] / self.scale_base
        pairs = self.scale.numel()
        channel = torch.arange(pairs, dtype=torch.float64, device=x.device)
        angle = position[:, None] * 10000.0 ** (-channel / pairs)
        scale = self.scale.double() ** (-exponent if downscale else exponent)
        cos, sin = ((turn * scale).to(x.dtype)[:, None] for turn in (angle.cos(), angle.sin()))
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
