"""What self-attention and cross-attention have in common: all but which tokens attend."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from ringspan.nn.checks import check_counts, check_dropout, check_heads, check_switches

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["Projections"]


class Projections(nn.Module):
    """The projections around attention, and the parameters of attention itself.

    The base of `SelfAttention` and `CrossAttention`, which document the arguments. Names in the
    state dict: `q_proj`, `k_proj`, `v_proj`, `out_proj`, each with `.weight` and, where `bias`,
    `.bias`; and `sink` where there is one.
    """

    sink: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        context_dim: int,
        kv_heads: int | None,
        value_head_dim: int | None,
        bias: bool,
        sink: bool,
        dropout_p: float,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        kv_heads = num_heads if kv_heads is None else kv_heads
        check_heads(embed_dim, num_heads, kv_heads)
        head_dim = embed_dim // num_heads
        value_head_dim = head_dim if value_head_dim is None else value_head_dim
        check_counts(value_head_dim=value_head_dim, context_dim=context_dim)
        check_switches(bias=bias, sink=sink)
        check_dropout(dropout_p)
        self.embed_dim, self.context_dim = embed_dim, context_dim
        self.num_heads, self.kv_heads = num_heads, kv_heads
        self.head_dim, self.value_head_dim = head_dim, value_head_dim
        self.dropout_p = float(dropout_p)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=bias, device=device, dtype=dtype)

        self.q_proj = linear(embed_dim, embed_dim)
        self.k_proj = linear(context_dim, kv_heads * head_dim)
        self.v_proj = linear(context_dim, kv_heads * value_head_dim)
        self.out_proj = linear(num_heads * value_head_dim, embed_dim)
        # A logit of zero: at first the sink weighs as much as one key that scores zero.
        logits = torch.zeros(num_heads, device=device, dtype=dtype) if sink else None
        self.register_parameter("sink", None if logits is None else nn.Parameter(logits))

    @property
    def active_dropout(self) -> float:
        """The probability of dropping at this moment: zero unless training."""
        return self.dropout_p if self.training else 0.0

    def project_query(self, x: Float[Tensor, "B N E"]) -> Float[Tensor, "B N H D"]:
        """The queries of `x`."""
        return self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))  # type: ignore[no-any-return]

    def project_context(
        self, context: Float[Tensor, "B Nk C"]
    ) -> tuple[Float[Tensor, "B Nk Hkv D"], Float[Tensor, "B Nk Hkv Dv"]]:
        """The keys and values of `context`; in self-attention, of `x` itself."""
        k = self.k_proj(context).unflatten(-1, (self.kv_heads, self.head_dim))
        v = self.v_proj(context).unflatten(-1, (self.kv_heads, self.value_head_dim))
        return k, v

    def finish(self, out: Float[Tensor, "B N H Dv"]) -> Float[Tensor, "B N E"]:
        """The module's output from attention's."""
        return self.out_proj(out.flatten(-2))  # type: ignore[no-any-return]

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        parts = [f"heads={self.num_heads}/{self.kv_heads}"]
        if self.sink is not None:
            parts.append("sink=True")
        if self.dropout_p:
            parts.append(f"dropout_p={self.dropout_p}")
        return ", ".join(parts)
