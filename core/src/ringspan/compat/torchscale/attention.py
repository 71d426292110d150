"""torchscale's dilated attention as a module with the same parameters."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ringspan.api import attention
from ringspan.compat.torchscale.loading import check_keys
from ringspan.compat.torchscale.packing import Packing
from ringspan.compat.torchscale.xpos import XPos
from ringspan.contracts.errors import InvalidArgument, NotYetSupported
from ringspan.nn.checks import check_dropout, check_heads, check_rows, check_switches, told
from ringspan.patterns import Dilated

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["DilatedAttention"]

Branches = Sequence[int] | str


class DilatedAttention(nn.Module):
    """What torchscale's module of that name computes, on any device and with exact gradients.

    Names in the state dict, as there: `q_proj`, `k_proj`, `v_proj`, `out_proj` with weight and
    bias, `inner_attn_ln` where `subln`, and `xpos.scale` where `xpos_rel_pos`. See
    `Dilated.torchscale` for what is computed. Two things differ: dropout is active in training
    only, and padded tokens of a batch take no part.

    Args:
        embed_dim: `E`, a multiple of `num_heads`.
        num_heads: heads; keys and values have as many.
        segment_length: tokens per segment, one per branch; integers, or torchscale's text for
            them, such as `"[1024, 2048]"`.
        dilated_ratio: the dilation rate of each branch, likewise.
        dropout: probability of dropping an attention weight while training.
        self_attention: True; torchscale has no dilated cross-attention either.
        subln: whether a layer norm comes before the output projection.
        layernorm_eps: of that layer norm.
        xpos_rel_pos: whether queries and keys are rotated and scaled by position (XPos).
        xpos_scale_base: of that scaling.
        seq_parallel: whether each rank of the default process group, where there is one, has a
            contiguous part of the sequence.

    Raises:
        InvalidArgument: an argument that does not fit; names it.

    Source: `dilated_attention.py` and `multihead_attention.py` of github.com/microsoft/torchscale;
    the slide encoder of GigaPath (Nature 2024, doi 10.1038/s41586-024-07441-w) is made of them.

    Example:
        >>> import torch
        >>> layer = DilatedAttention(768, 16, [1024, 5792], [1, 2])
        >>> x = torch.randn(1, 300, 768)
        >>> layer(x, x, x)[0].shape
        torch.Size([1, 300, 768])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        segment_length: Branches,
        dilated_ratio: Branches,
        dropout: float = 0.0,
        self_attention: bool = True,
        subln: bool = True,
        *,
        layernorm_eps: float = 1e-5,
        xpos_rel_pos: bool = False,
        xpos_scale_base: float = 512,
        seq_parallel: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_heads(embed_dim, num_heads, num_heads)
        check_dropout(dropout)
        check_switches(subln=subln, xpos_rel_pos=xpos_rel_pos, seq_parallel=seq_parallel)
        if self_attention is not True:
            raise InvalidArgument("self_attention", expected="True", got=repr(self_attention))
        self.embed_dim, self.num_heads = embed_dim, num_heads
        self.head_dim = embed_dim // num_heads
        self.dropout, self.seq_parallel = float(dropout), seq_parallel
        self.pattern = Dilated.torchscale(
            _branches("segment_length", segment_length), _branches("dilated_ratio", dilated_ratio)
        )
        made: dict[str, Any] = {"device": device, "dtype": dtype}
        self.k_proj = nn.Linear(embed_dim, embed_dim, **made)
        self.v_proj = nn.Linear(embed_dim, embed_dim, **made)
        self.q_proj = nn.Linear(embed_dim, embed_dim, **made)
        self.out_proj = nn.Linear(embed_dim, embed_dim, **made)
        self.inner_attn_ln = nn.LayerNorm(embed_dim, eps=layernorm_eps, **made) if subln else None
        self.xpos = XPos(self.head_dim, xpos_scale_base, **made) if xpos_rel_pos else None

    @classmethod
    def from_args(
        cls,
        args: Any,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        self_attention: bool = False,
        encoder_decoder_attention: bool = False,
        subln: bool = False,
    ) -> DilatedAttention:
        """The module from the arguments of torchscale's constructor, in its order.

        `args` is torchscale's configuration, of which `segment_length`, `dilated_ratio`,
        `layernorm_eps`, `xpos_rel_pos`, `xpos_scale_base`, `seq_parallel` and `multiway` are read.

        Raises:
            NotYetSupported: `args.multiway`.
            InvalidArgument: as the constructor.
        """
        if getattr(args, "multiway", False):
            raise NotYetSupported(
                "args.multiway",
                expected="False",
                got="True",
                remedy="Build the model with torchscale, then call replace(model)",
            )
        return cls(
            embed_dim,
            num_heads,
            args.segment_length,
            args.dilated_ratio,
            dropout,
            self_attention and not encoder_decoder_attention,
            subln,
            layernorm_eps=getattr(args, "layernorm_eps", 1e-5),
            xpos_rel_pos=getattr(args, "xpos_rel_pos", False),
            xpos_scale_base=getattr(args, "xpos_scale_base", 512),
            seq_parallel=getattr(args, "seq_parallel", False),
        )

    def forward(
        self,
        query: Float[Tensor, "B N E"],
        key: Float[Tensor, "B N E"],
        value: Float[Tensor, "B N E"],
        incremental_state: None = None,
        key_padding_mask: Bool[Tensor, "B N"] | None = None,
        attn_mask: None = None,
        rel_pos: None = None,
        is_first_step: bool = False,
        is_causal: bool = False,
    ) -> tuple[Float[Tensor, "B N E"], None]:
        """Attends among the tokens of each row.

        Args:
            query, key, value: usually the same tensor.
            incremental_state: refused, as are `attn_mask` and `rel_pos`, unless None.
            key_padding_mask: True for padding, anywhere in a row. The real tokens of each row come
                out as if that row were run alone without its padding, and padded tokens as if
                attention had given them zeros. Looking at it costs one synchronisation with the
                device; None where nothing is padded costs none.
            is_first_step: of no effect without `incremental_state`, as in torchscale.
            is_causal: whether tokens see earlier ones only.

        Returns:
            The output and None, as torchscale does.

        Raises:
            NotYetSupported: an argument that is refused; names it.
            InvalidArgument: shapes that do not fit, or a mask of another shape or dtype.
        """
        _refuse(incremental_state=incremental_state, attn_mask=attn_mask, rel_pos=rel_pos)
        for name, x in (("query", query), ("key", key), ("value", value)):
            check_rows(name, x, self.embed_dim)
            if x.shape != query.shape:
                raise InvalidArgument(
                    name, expected=f"shape {list(query.shape)}, as query", got=told(x)
                )
        packing = Packing.of(key_padding_mask, query)
        heads = (self.num_heads, self.head_dim)
        q, k, v = (
            projection(x).unflatten(-1, heads)
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        out = self._attended(q, k, v, packing, is_causal).flatten(-2)
        if self.inner_attn_ln is not None:
            out = self.inner_attn_ln(out)
        return self.out_proj(out), None

    def _attended(
        self, q: Tensor, k: Tensor, v: Tensor, packing: Packing | None, is_causal: bool
    ) -> Tensor:
        group = self._group(packing)
        if packing is not None:
            q, k, v = (packing.pack(x) for x in (q, k, v))
        if self.xpos is not None:
            q, k = _positioned(self.xpos, q, k, packing)
        out = attention(
            q,
            k,
            v,
            pattern=self.pattern,
            causal=is_causal,
            documents=None if packing is None else packing.documents,
            dropout_p=self.dropout if self.training else 0.0,
            group=group,
        )
        assert not isinstance(out, tuple)
        return out if packing is None else packing.unpack(out)

    def _group(self, packing: Packing | None) -> Any:
        """The process group that shares the sequence, if any."""
        distributed = torch.distributed
        if not (self.seq_parallel and distributed.is_available() and distributed.is_initialized()):
            return None
        if distributed.get_world_size() > 1:
            _refuse_in_parallel(key_padding_mask=packing, xpos_rel_pos=self.xpos)
        return distributed.group.WORLD

    def load_state_dict(
        self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False
    ) -> Any:
        """As of any module, but nothing is loaded unless all names and shapes fit.

        Raises:
            InvalidArgument: with `strict`, missing or unexpected names, or other shapes; all of
                them are named.
        """
        if strict:
            check_keys(self.state_dict(), state_dict)
        return super().load_state_dict(state_dict, strict, assign)

    def extra_repr(self) -> str:
        """Shown by `print(module)`."""
        return f"{self.pattern}, heads={self.num_heads}"


def _positioned(xpos: XPos, q: Tensor, k: Tensor, packing: Packing | None) -> tuple[Tensor, Tensor]:
    """Queries and keys by their position, counted in each row from its first real token."""
    if packing is None:
        xpos.check(q.shape[1], q.dtype)
        places: tuple[Any, Any] = (torch.arange(q.shape[1], device=q.device), q.shape[1])
    else:
        xpos.check(int(packing.documents.lengths.max(initial=0)), q.dtype)
        places = packing.places()
    return xpos(q, *places), xpos(k, *places, downscale=True)


def _branches(name: str, values: Branches) -> tuple[int, ...]:
    """As the tuple that a pattern takes, which refuses what does not fit."""
    if isinstance(values, str):
        try:
            values = ast.literal_eval(values)
        except (ValueError, SyntaxError):
            raise InvalidArgument(
                name, expected="integers, or their text such as '[1024, 2048]'", got=repr(values)
            ) from None
    return tuple(values) if isinstance(values, list) else values  # type: ignore[return-value]


def _refuse(**arguments: object) -> None:
    for name, value in arguments.items():
        if value is not None:
            raise NotYetSupported(name, expected="None", got=type(value).__name__)


def _refuse_in_parallel(**parts: object) -> None:
    for name, part in parts.items():
        if part is not None:
            raise NotYetSupported(
                name,
                expected="none of it with seq_parallel on several ranks",
                got="both",
                remedy="Call ringspan.attention with documents and a group",
            )
