"""Self-attention over a dilated pattern, with its projections."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ringspan import validation
from ringspan.api import attention
from ringspan.contracts.errors import InvalidArgument
from ringspan.engine.call import Call
from ringspan.nn.rotary import RotaryEmbedding, check_base
from ringspan.patterns import Along, Dilated
from ringspan.plan.groups import Ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

    from ringspan.contracts.tokens import Tokens
    from ringspan.plan.layout import Layout

__all__ = ["DilatedSelfAttention"]


class DilatedSelfAttention(nn.Module):
    """Multi-head dilated self-attention (LongNet, arXiv 2307.02486) on `[B, N, E]`.

    Args:
        embed_dim: `E`, a multiple of `num_heads`.
        num_heads: query heads `H`.
        segment_lengths: tokens per segment, one per branch.
        dilation_rates: one per branch.
        kv_heads: key/value heads, a divisor of `num_heads`; None: as many (no grouping).
        head_offsets: `"modulo"` or `"blocked"`, see `Dilated`.
        causal: whether tokens see earlier positions only.
        rotary: rotate queries and keys by position before attention.
        rotary_base: see `RotaryEmbedding`.
        bias: whether the projections have biases.
        along: see `Dilated`.

    Names in the state dict: `q_proj`, `k_proj`, `v_proj`, `out_proj`.

    Example:
        >>> import torch, ringspan as rs
        >>> layer = rs.nn.DilatedSelfAttention(64, 4, (32, 128), (1, 4))
        >>> layer(torch.randn(2, 300, 64)).shape
        torch.Size([2, 300, 64])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        segment_lengths: Sequence[int],
        dilation_rates: Sequence[int],
        *,
        kv_heads: int | None = None,
        head_offsets: str = "modulo",
        causal: bool = True,
        rotary: bool = True,
        rotary_base: float = 10000.0,
        bias: bool = False,
        along: Along | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kv_heads = num_heads if kv_heads is None else kv_heads
        _check_heads(embed_dim, num_heads, kv_heads)
        _check_switches(causal=causal, rotary=rotary, bias=bias)
        if rotary:
            check_base("rotary_base", rotary_base)
        self.num_heads, self.kv_heads, self.causal = num_heads, kv_heads, causal
        self.embed_dim, self.head_dim = embed_dim, embed_dim // num_heads
        self.pattern = Dilated(
            _branches(segment_lengths),
            _branches(dilation_rates),
            head_offsets=head_offsets,
            along=along,
        )
        self.rotary = RotaryEmbedding(self.head_dim, rotary_base) if rotary else None
        narrow = kv_heads * self.head_dim
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)
        self.k_proj = nn.Linear(embed_dim, narrow, bias=bias, device=device, dtype=dtype)
        self.v_proj = nn.Linear(embed_dim, narrow, bias=bias, device=device, dtype=dtype)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias, device=device, dtype=dtype)

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        *,
        layout: Layout | None = None,
        group: Any = None,
        tokens: Tokens | None = None,
    ) -> Float[Tensor, "B N E"]:
        """Attends among the rows of `x`.

        Args:
            x: all tokens; with `layout` and `group`, this rank's rows in the order of
                `layout.positions(rank)`.
            layout: see `ringspan.attention`. With a group and rotary embedding it is required,
                because rows must know their positions.
            group: see `ringspan.attention`.
            tokens: see `ringspan.attention`.
        """
        if not isinstance(x, torch.Tensor) or x.dim() != 3 or x.shape[-1] != self.embed_dim:
            raise InvalidArgument(
                "x",
                expected=f"a tensor [batch, tokens, {self.embed_dim}]",
                got=f"shape {list(x.shape)}" if isinstance(x, torch.Tensor) else type(x).__name__,
            )
        q = self.q_proj(x).unflatten(-1, (self.num_heads, self.head_dim))
        k = self.k_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        v = self.v_proj(x).unflatten(-1, (self.kv_heads, self.head_dim))
        if self.rotary is not None:
            positions = self._positions(x, layout, group, tokens)
            q, k = self.rotary(q, positions), self.rotary(k, positions)
        out = attention(
            q,
            k,
            v,
            pattern=self.pattern,
            causal=self.causal,
            layout=layout,
            group=group,
            tokens=tokens,
        )
        return self.out_proj(out.flatten(-2))  # type: ignore[no-any-return, union-attr]

    def _positions(
        self, x: Tensor, layout: Layout | None, group: Any, tokens: Tokens | None
    ) -> Tensor:
        ranks = Ranks.of(group)
        # What attention would refuse later must not be read as positions before.
        call = Call(self.pattern, self.causal, tokens=tokens, layout=layout)
        validation.check_call(call, x.shape[1], ranks)
        if layout is not None:
            return layout.positions(ranks.rank)
        if group is not None:
            raise InvalidArgument(
                "layout",
                expected="a Layout beside group, so that rotary embedding knows the positions",
                got="None",
                remedy="Pass layout=Layout(N, world_size)",
            )
        return torch.arange(x.shape[1], device=x.device)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.pattern}, heads={self.num_heads}/{self.kv_heads}, causal={self.causal}"


def _branches(values: Any) -> Any:
    """As the tuple that `Dilated` takes; what is no collection is left for it to refuse."""
    return tuple(values) if isinstance(values, Iterable) else values


def _check_switches(**switches: object) -> None:
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise InvalidArgument(name, expected="True or False", got=repr(value))


def _check_heads(embed_dim: int, num_heads: int, kv_heads: int) -> None:
    for name, value in (
        ("embed_dim", embed_dim),
        ("num_heads", num_heads),
        ("kv_heads", kv_heads),
    ):
        if type(value) is not int or value < 1:
            raise InvalidArgument(name, expected="an integer >= 1", got=repr(value))
    if embed_dim % num_heads:
        raise InvalidArgument(
            "embed_dim", expected=f"a multiple of num_heads {num_heads}", got=str(embed_dim)
        )
    if num_heads % kv_heads:
        raise InvalidArgument(
            "kv_heads", expected=f"a divisor of num_heads {num_heads}", got=str(kv_heads)
        )
