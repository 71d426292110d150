"""Cross-attention: every token of one sequence sees every token of another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.api import attention
from ringspan.contracts.errors import InvalidArgument
from ringspan.nn.checks import check_rows, told
from ringspan.nn.projections import Projections

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["CrossAttention"]


class CrossAttention(Projections):
    """Multi-head attention of `[B, N, E]` to a context `[B, Nk, C]`.

    Under autocast the projections run in its dtype, and so does attention; the sink keeps its
    own.

    Args:
        embed_dim: `E`, a multiple of `num_heads`.
        num_heads: query heads `H`.
        context_dim: `C`; None: `E`.
        kv_heads: key/value heads, a divisor of `num_heads`; None: as many (no grouping).
        value_head_dim: channels of each value head; None: `E / H`, as queries and keys have.
        bias: whether the projections have biases.
        sink: whether each head has a learnable logit that takes part in its normaliser, zero at
            first.
        dropout_p: probability of dropping an attention weight, while training only.
        device: of the parameters.
        dtype: of the parameters.

    Names in the state dict: `q_proj`, `k_proj`, `v_proj`, `out_proj`, and `sink`.

    Raises:
        InvalidArgument: an argument is wrong; names it.

    Example:
        >>> import torch, ringspan as rs
        >>> layer = rs.nn.CrossAttention(64, 4, context_dim=32)
        >>> layer(torch.randn(2, 10, 64), torch.randn(2, 300, 32)).shape
        torch.Size([2, 10, 64])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        context_dim: int | None = None,
        kv_heads: int | None = None,
        value_head_dim: int | None = None,
        bias: bool = False,
        sink: bool = False,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            context_dim=embed_dim if context_dim is None else context_dim,
            kv_heads=kv_heads,
            value_head_dim=value_head_dim,
            bias=bias,
            sink=sink,
            dropout_p=dropout_p,
            device=device,
            dtype=dtype,
        )

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        context: Float[Tensor, "B Nk C"],
        *,
        key_padding: Bool[Tensor, "B Nk"] | None = None,
    ) -> Float[Tensor, "B N E"]:
        """Attends from the rows of `x` to those of `context`.

        Args:
            x: gives the queries.
            context: gives the keys and values.
            key_padding: which rows of `context` are real; the others are not seen. A row of `x`
                whose whole context is padding gets attention's zeros.

        Raises:
            InvalidArgument: an argument is wrong or does not fit the others; names it.
        """
        check_rows("x", x, self.embed_dim)
        check_rows("context", context, self.context_dim)
        if context.shape[0] != x.shape[0]:
            raise InvalidArgument(
                "context", expected=f"a batch of {x.shape[0]}, as x", got=told(context)
            )
        k, v = self.project_context(context)
        out = attention(
            self.project_query(x),
            k,
            v,
            key_padding=key_padding,
            sink=self.sink,
            dropout_p=self.active_dropout,
            query_positions=None if key_padding is None else _apart(x, context),
        )
        assert not isinstance(out, tuple)
        return self.finish(out)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.embed_dim} from {self.context_dim}, {super().extra_repr()}"


def _apart(x: Tensor, context: Tensor) -> Tensor | None:
    """Positions that keep queries from being taken for the context's own tokens.

    As many queries as keys would be padded as these are; beyond the keys there is no padding.
    """
    rows, keys = x.shape[1], context.shape[1]
    return torch.arange(keys, keys + rows) if rows == keys else None
