"""A small causal language model over any pattern."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Pattern
from ringspan.nn.block import TransformerBlock
from ringspan.nn.checks import check_counts, told
from ringspan.nn.self_attention import SelfAttention

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

    from ringspan.contracts.documents import Documents
    from ringspan.contracts.tokens import Tokens
    from ringspan.nn.cache import Cache
    from ringspan.plan.layout import Layout

__all__ = ["LongNet"]


class LongNet(nn.Module):
    """A decoder: predicts each position's next token. Input and output share one embedding.

    LongNet (arXiv 2307.02486) with `Dilated` patterns; any other pattern serves as well. Every
    block starts silent, adding nothing to its input, so that the first steps fit the embedding
    undisturbed.

    Args:
        vocab_size: number of different tokens `V`.
        embed_dim: channels `E`, a multiple of `num_heads`.
        num_layers: blocks.
        num_heads: query heads of each block.
        pattern: what attends to what; one for all blocks, or one per block. Always causal.
        kv_heads: see `SelfAttention`.
        hidden_dim: see `TransformerBlock`.
        rotary: see `SelfAttention`. Without it, only the pattern tells positions apart.
        rotary_base: see `SelfAttention`.
        bias: whether projections and perceptrons have biases.
        sink: see `SelfAttention`.
        dropout_p: see `SelfAttention`.
        device: of the parameters.
        dtype: of the parameters.

    Names in the state dict: `embedding`, `blocks.<number>.*` as `TransformerBlock` has them, and
    `norm`.

    Raises:
        InvalidArgument: an argument is wrong; names it.

    Example:
        >>> import torch, ringspan as rs
        >>> model = rs.nn.LongNet(256, 64, 2, 4, rs.Dilated((32, 128), (1, 4)))
        >>> model(torch.randint(256, (1, 300))).shape
        torch.Size([1, 300, 256])
    """

    def __init__(
        self,
        vocab_size: int,
        embed_dim: int,
        num_layers: int,
        num_heads: int,
        pattern: Pattern | Sequence[Pattern],
        *,
        kv_heads: int | None = None,
        hidden_dim: int | None = None,
        rotary: bool = True,
        rotary_base: float = 10000.0,
        bias: bool = False,
        sink: bool = False,
        dropout_p: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_counts(vocab_size=vocab_size, embed_dim=embed_dim, num_layers=num_layers)
        self.embedding = nn.Embedding(vocab_size, embed_dim, device=device, dtype=dtype)
        nn.init.normal_(self.embedding.weight, std=0.02)
        self.blocks = nn.ModuleList()
        for own in _patterns(pattern, num_layers):
            attention = SelfAttention(
                embed_dim,
                num_heads,
                own,
                kv_heads=kv_heads,
                rotary=rotary,
                rotary_base=rotary_base,
                bias=bias,
                sink=sink,
                dropout_p=dropout_p,
                device=device,
                dtype=dtype,
            )
            block = TransformerBlock(
                attention, hidden_dim=hidden_dim, bias=bias, device=device, dtype=dtype
            )
            _silence(block)
            self.blocks.append(block)
        self.norm = nn.RMSNorm(embed_dim, device=device, dtype=dtype)

    @property
    def attentions(self) -> tuple[SelfAttention, ...]:
        """The attention of each block: its pattern and sizes say which cache it needs."""
        return tuple(block.attention for block in self.blocks)  # type: ignore[misc]

    def forward(
        self,
        input_ids: Int[Tensor, "B N"],
        *,
        layout: Layout | None = None,
        group: Any = None,
        tokens: Tokens | None = None,
        documents: Documents | None = None,
        key_padding: Bool[Tensor, "B N"] | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "B N V"]:
        """Logits of each position's next token.

        Args:
            input_ids: tokens in order of position, int64 or int32; with `layout` and `group`,
                this rank's; with `caches`, those that follow the tokens so far.
            layout: see `SelfAttention`.
            group: see `SelfAttention`.
            tokens: see `SelfAttention`.
            documents: see `SelfAttention`.
            key_padding: see `SelfAttention`.
            caches: one per block; `input_ids` are appended. See `SelfAttention`.

        Raises:
            InvalidArgument: an argument is wrong or does not fit the others; names it.
        """
        _check_input_ids(input_ids)
        options: dict[str, Any] = {
            "layout": layout,
            "group": group,
            "tokens": tokens,
            "documents": documents,
            "key_padding": key_padding,
        }
        x = self.embedding(input_ids)
        for block, cache in zip(self.blocks, self._caches(caches), strict=True):
            x = block(x, cache=cache, **options)
        return functional.linear(self.norm(x), self.embedding.weight)

    def _caches(self, caches: Sequence[Cache] | None) -> Sequence[Cache | None]:
        if caches is None:
            return [None] * len(self.blocks)
        if not isinstance(caches, Sequence) or len(caches) != len(self.blocks):
            raise InvalidArgument(
                "caches",
                expected=f"{len(self.blocks)}, one per block",
                got=str(len(caches)) if isinstance(caches, Sequence) else type(caches).__name__,
            )
        return caches


def _silence(block: TransformerBlock) -> None:
    for layer in block.last_layers:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _patterns(pattern: object, num_layers: int) -> Sequence[Any]:
    if not isinstance(pattern, Sequence):
        return [pattern] * num_layers
    if len(pattern) != num_layers:
        raise InvalidArgument(
            "pattern",
            expected=f"one for all blocks, or {num_layers}, one per block",
            got=f"{len(pattern)} patterns",
        )
    return pattern


def _check_input_ids(input_ids: object) -> None:
    fits = isinstance(input_ids, torch.Tensor) and input_ids.dim() == 2
    if not fits or input_ids.dtype not in (torch.int32, torch.int64):  # type: ignore[attr-defined]
        kind = f"{input_ids.dtype} of " if isinstance(input_ids, torch.Tensor) else ""
        raise InvalidArgument(
            "input_ids",
            expected="an int64 or int32 tensor [batch, tokens]",
            got=kind + told(input_ids),
        )
