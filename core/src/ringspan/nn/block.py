"""One layer of a transformer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from ringspan.contracts.errors import InvalidArgument
from ringspan.nn.checks import check_counts, check_rows, check_switches
from ringspan.nn.self_attention import SelfAttention

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["TransformerBlock"]


class TransformerBlock(nn.Module):
    """Pre-norm self-attention, then a pre-norm perceptron, each added to its input.

        x = x + attention(norm(x))        x = x + down(gelu(up(norm(x))))

    Args:
        attention: the block's attention; sets its width `E`.
        hidden_dim: width inside the perceptron; None: `4 E`.
        bias: whether the perceptron has biases.
        device: of the other parameters.
        dtype: of the other parameters.

    Names in the state dict: `attention_norm`, `attention.*`, `perceptron.0` (its norm),
    `perceptron.1` (up) and `perceptron.3` (down).

    Raises:
        InvalidArgument: an argument is wrong; names it.

    Source: pre-norm, arXiv 2002.04745; RMSNorm, arXiv 1910.07467.

    Example:
        >>> import torch, ringspan as rs
        >>> block = rs.nn.TransformerBlock(rs.nn.SelfAttention(64, 4, rs.Dense()))
        >>> block(torch.randn(2, 300, 64)).shape
        torch.Size([2, 300, 64])
    """

    def __init__(
        self,
        attention: SelfAttention,
        *,
        hidden_dim: int | None = None,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(attention, SelfAttention):
            raise InvalidArgument(
                "attention", expected="a SelfAttention", got=type(attention).__name__
            )
        check_switches(bias=bias)
        width = attention.embed_dim
        hidden_dim = 4 * width if hidden_dim is None else hidden_dim
        check_counts(hidden_dim=hidden_dim)
        self.attention_norm = nn.RMSNorm(width, device=device, dtype=dtype)
        self.attention = attention
        # Drawn before `up`, so that a seed goes on giving the weights that it always gave.
        down = nn.Linear(hidden_dim, width, bias=bias, device=device, dtype=dtype)
        self.perceptron = nn.Sequential(
            nn.RMSNorm(width, device=device, dtype=dtype),
            nn.Linear(width, hidden_dim, bias=bias, device=device, dtype=dtype),
            nn.GELU(),
            down,
        )

    def forward(self, x: Float[Tensor, "B N E"], **options: Any) -> Float[Tensor, "B N E"]:
        """The block's output for the rows of `x`.

        Args:
            x: as `SelfAttention` takes it.
            options: `layout`, `group`, `tokens`, `documents`, `key_padding` and `cache`, as
                `SelfAttention` takes them.
        """
        check_rows("x", x, self.attention.embed_dim)
        x = x + self.attention(self.attention_norm(x), **options)
        y: Tensor = x + self.perceptron(x)
        return y

    @property
    def last_layers(self) -> tuple[nn.Linear, nn.Linear]:
        """What writes to the residual stream: attention's output projection, and `down`."""
        down = self.perceptron[-1]
        assert isinstance(down, nn.Linear)
        return self.attention.out_proj, down
