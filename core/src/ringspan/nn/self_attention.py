"""Self-attention over any pattern, with its projections; LongNet's as a special case."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from ringspan import validation
from ringspan.api import attention
from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Pattern
from ringspan.engine.call import Call
from ringspan.engine.run import AGREE_ON_LENGTHS
from ringspan.nn.cache import Cache
from ringspan.nn.checks import check_rows, check_switches
from ringspan.nn.positions import row_positions
from ringspan.nn.projections import Projections
from ringspan.nn.rotary import RotaryEmbedding, check_base
from ringspan.patterns import Along, Dilated
from ringspan.plan.groups import Ranks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from ringspan.contracts.documents import Documents
    from ringspan.contracts.tokens import Tokens
    from ringspan.plan.layout import Layout

__all__ = ["DilatedSelfAttention", "SelfAttention"]


class SelfAttention(Projections):
    """Multi-head self-attention on `[B, N, E]`, over any pattern.

    Under autocast the projections run in its dtype, and so does attention; the sink and the
    angles of the rotation keep their own.

    Args:
        embed_dim: `E`, a multiple of `num_heads`.
        num_heads: query heads `H`.
        pattern: what attends to what, such as `Dense()` or `Dilated(...)`.
        kv_heads: key/value heads, a divisor of `num_heads`; None: as many (no grouping).
        value_head_dim: channels of each value head; None: `E / H`, as queries and keys have.
        causal: whether tokens see earlier positions only.
        rotary: rotate queries and keys by position before attention, each document from 0 on.
        rotary_base: see `RotaryEmbedding`.
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
        >>> layer = rs.nn.SelfAttention(64, 4, rs.Dense(), kv_heads=2)
        >>> layer(torch.randn(2, 300, 64)).shape
        torch.Size([2, 300, 64])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        pattern: Pattern,
        *,
        kv_heads: int | None = None,
        value_head_dim: int | None = None,
        causal: bool = True,
        rotary: bool = True,
        rotary_base: float = 10000.0,
        bias: bool = False,
        sink: bool = False,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_switches(causal=causal, rotary=rotary)
        if not isinstance(pattern, Pattern):
            raise InvalidArgument(
                "pattern", expected="a pattern such as Dense() or Dilated(...)", got=repr(pattern)
            )
        if rotary:
            check_base("rotary_base", rotary_base)
        super().__init__(
            embed_dim,
            num_heads,
            context_dim=embed_dim,
            kv_heads=kv_heads,
            value_head_dim=value_head_dim,
            bias=bias,
            sink=sink,
            dropout_p=dropout_p,
            device=device,
            dtype=dtype,
        )
        self.pattern, self.causal = pattern, causal
        self.rotary = RotaryEmbedding(self.head_dim, rotary_base) if rotary else None

    def forward(
        self,
        x: Float[Tensor, "B N E"],
        *,
        layout: Layout | None = None,
        group: Any = None,
        tokens: Tokens | None = None,
        documents: Documents | Int[Tensor, " documents+1"] | None = None,
        key_padding: Bool[Tensor, "B N"] | None = None,
        cache: Cache | None = None,
    ) -> Float[Tensor, "B N E"]:
        """Attends among the rows of `x`.

        Args:
            x: all tokens; with `layout` and `group`, this rank's rows in the order of
                `layout.positions(rank)`; with `cache`, the tokens that follow those in it.
            layout: see `ringspan.attention`. With a group and rotary embedding it is required,
                because rows must know their positions.
            group: see `ringspan.attention`.
            tokens: see `ringspan.attention`.
            documents: see `ringspan.attention`; the rotation restarts at each.
            key_padding: see `ringspan.attention`.
            cache: keys and values of the tokens so far, made for `pattern`; those of `x` are
                appended. Stands alone: no other option goes with it.

        Raises:
            InvalidArgument: an argument is wrong or does not fit the others; names it.
        """
        check_rows("x", x, self.embed_dim)
        options: dict[str, Any] = {
            "layout": layout,
            "group": group,
            "tokens": tokens,
            "documents": documents,
            "key_padding": key_padding,
        }
        if cache is not None:
            self._check_cached(cache, options)
            return self._step(x, cache)
        packed = validation.checked_documents(documents)
        options["documents"] = packed
        positions = None
        if self.rotary is not None:
            positions = _positions(self.pattern, x, layout, Ranks.of(group), tokens, packed)
        q, k, v = self.project(x, positions)
        out = attention(
            q,
            k,
            v,
            pattern=self.pattern,
            causal=self.causal,
            sink=self.sink,
            dropout_p=self.active_dropout,
            **options,
        )
        assert not isinstance(out, tuple)
        return self.finish(out)

    def project(
        self, x: Float[Tensor, "B N E"], positions: Int[Tensor, " N"] | None = None
    ) -> tuple[Float[Tensor, "B N H D"], Float[Tensor, "B N Hkv D"], Float[Tensor, "B N Hkv Dv"]]:
        """Queries, keys and values of `x`, rotated to `positions` where the layer rotates.

        With `finish`, for those who compute what lies between themselves.
        """
        q = self.project_query(x)
        k, v = self.project_context(x)
        if self.rotary is not None:
            if positions is None:
                raise InvalidArgument(
                    "positions", expected="where the rows of x stand, for rotary", got="None"
                )
            q, k = self.rotary.rotate(positions, q, k)
        return q, k, v

    def _step(self, x: Tensor, cache: Cache) -> Tensor:
        positions = cache.length + torch.arange(x.shape[1], device=x.device)
        return self.finish(cache.attend(*self.project(x, positions), sink=self.sink))

    def _check_cached(self, cache: object, options: dict[str, object]) -> None:
        if not isinstance(cache, Cache):
            raise InvalidArgument(
                "cache", expected="a cache such as make_cache(...) gives", got=type(cache).__name__
            )
        for name, value in options.items():
            if value is not None:
                raise InvalidArgument(name, expected="None beside cache", got=type(value).__name__)
        if not self.causal:
            raise InvalidArgument("cache", expected="None, for causal=False", got="a cache")
        if self.active_dropout:
            raise InvalidArgument(
                "cache",
                expected="None while training with dropout",
                got="a cache",
                remedy="Call eval() on the module",
            )
        if cache.pattern != self.pattern:
            raise InvalidArgument(
                "cache", expected=f"one made for {self.pattern}", got=f"one for {cache.pattern}"
            )

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.pattern}, {super().extra_repr()}, causal={self.causal}"


class DilatedSelfAttention(SelfAttention):
    """Multi-head dilated self-attention (LongNet, arXiv 2307.02486) on `[B, N, E]`.

    Args:
        embed_dim: `E`, a multiple of `num_heads`.
        num_heads: query heads `H`.
        segment_lengths: tokens per segment, one per branch.
        dilation_rates: one per branch.
        kv_heads: key/value heads, a divisor of `num_heads`; None: as many (no grouping).
        head_offsets: see `Dilated`.
        causal: whether tokens see earlier positions only.
        rotary: rotate queries and keys by position before attention.
        rotary_base: see `RotaryEmbedding`.
        bias: whether the projections have biases.
        along: see `Dilated`.
        device: of the parameters.
        dtype: of the parameters.

    For sinks, dropout and all else, give a `Dilated` pattern to `SelfAttention`.

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
        head_offsets: Any = "modulo",
        causal: bool = True,
        rotary: bool = True,
        rotary_base: float = 10000.0,
        bias: bool = False,
        along: Along | str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        pattern = Dilated(
            _branches(segment_lengths),
            _branches(dilation_rates),
            head_offsets=head_offsets,
            along=along,
        )
        super().__init__(
            embed_dim,
            num_heads,
            pattern,
            kv_heads=kv_heads,
            causal=causal,
            rotary=rotary,
            rotary_base=rotary_base,
            bias=bias,
            device=device,
            dtype=dtype,
        )


def _branches(values: Any) -> Any:
    """As the tuple that `Dilated` takes; what is no collection is left for it to refuse."""
    return tuple(values) if isinstance(values, Iterable) else values


def _positions(
    pattern: Pattern,
    x: Tensor,
    layout: Layout | None,
    ranks: Ranks,
    tokens: Tokens | None,
    documents: Documents | None,
) -> Tensor:
    call = Call(pattern, tokens=tokens, layout=layout)
    # What attention would refuse later must not be read as positions before.
    N = validation.check_rows(call, x.shape[1], ranks)
    if N == AGREE_ON_LENGTHS:
        raise InvalidArgument(
            "layout",
            expected="a Layout beside group, so that rotary embedding knows the positions",
            got="None",
            remedy="Pass layout=Layout(N, world_size)",
        )
    lengths = None if documents is None else documents.tensor
    return row_positions(call, N, ranks.rank, rows=x.shape[1], lengths=lengths, device=x.device)
