"""A backend of a few lines: float64 softmax, every mask. For tests of what is above backends.

The module is also a plugin: register it wherever a pluggy plugin is taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch

from ringspan.contracts import (
    AttentionBackend,
    Availability,
    Capabilities,
    DeviceInfo,
    Dropout,
    Grads,
    Mask,
    MaskCase,
    TileOutput,
    hookimpl,
)
from ringspan.testing.formula import fold_heads, spread_heads

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["Toy", "ringspan_attention_backends"]


class Toy(AttentionBackend):
    """Attention in float64, one matrix of scores per tile; every mask, padding and dropout."""

    name: ClassVar[str] = "toy"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cpu", "cuda"}),
        dtypes=frozenset({"float64", "float32", "bfloat16", "float16"}),
        masks=frozenset(MaskCase) - {MaskCase.BAND},
        value_head_dim_differs=True,
        gqa=True,
        key_padding=True,
        dropout=True,
    )

    def probe(self, device: DeviceInfo) -> Availability:
        """Always usable."""
        return Availability.yes()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        mask: Mask,
        scale: float,
        dropout: Dropout | None = None,
    ) -> TileOutput:
        """Softmax of all visible scores."""
        scores = _scores(query, key, mask, scale)
        lse = scores.logsumexp(-1)
        P = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
        P = P * _kept_share(dropout)
        out = torch.einsum("bhij,bjhe->bihe", P, spread_heads(value.double(), query.shape[2]))
        return TileOutput(out.to(query.dtype), lse.to(_wide(query)))

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        *,
        mask: Mask,
        scale: float,
        dropout: Dropout | None = None,
    ) -> Grads:
        """Gradients from the probabilities that `lse` gives these keys."""
        delta = torch.einsum("bihe,bihe->bhi", grad_out.double(), out.double())
        tensors = (grad_out, query, key, value, lse, delta)
        return self.gradients(*tensors, mask=mask, scale=scale, dropout=dropout)

    def gradients(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        lse: Tensor,
        delta: Tensor,
        *,
        mask: Mask,
        scale: float,
        dropout: Dropout | None = None,
    ) -> Grads:
        """The same, given `<grad_out, out>` of each row, `[B, H, Lq]`, in place of `out`."""
        heads, kv_heads = query.shape[2], key.shape[2]
        P = (_scores(query, key, mask, scale) - lse.double()[..., None]).exp()
        dO, V, M = grad_out.double(), spread_heads(value.double(), heads), _kept_share(dropout)
        Delta = delta.double()
        dS = scale * P * (M * torch.einsum("bihe,bjhe->bhij", dO, V) - Delta[..., None])
        dQ = torch.einsum("bhij,bjhd->bihd", dS, spread_heads(key.double(), heads))
        dK = torch.einsum("bhij,bihd->bjhd", dS, query.double())
        dV = torch.einsum("bhij,bihe->bjhe", P * M, dO)
        grads = (dQ, fold_heads(dK, kv_heads), fold_heads(dV, kv_heads))
        return Grads(*(grad.to(_wide(query)) for grad in grads))


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers `toy`."""
    return [Toy()]


def _scores(query: Tensor, key: Tensor, mask: Mask, scale: float) -> Tensor:
    K = spread_heads(key.double(), query.shape[2])
    scores = scale * torch.einsum("bihd,bjhd->bhij", query.double(), K)
    seen = _seen(mask, torch.arange(key.shape[1], device=key.device))
    if mask.key_seen is not None:
        group = query.shape[2] // key.shape[2]
        padding = ~mask.key_seen.expand(key.shape[0], key.shape[2], -1)
        scores.masked_fill_(padding.repeat_interleave(group, 1)[:, :, None], -torch.inf)
    return scores.masked_fill_(~seen, -torch.inf)


def _seen(mask: Mask, keys: Tensor) -> Tensor:
    """What the mask's case lets each query see."""
    if mask.case is MaskCase.CAUSAL:
        return keys <= keys[:, None]
    if mask.case is MaskCase.INTERVAL:
        assert mask.low is not None
        assert mask.high is not None
        return (mask.low[..., None] <= keys) & (keys < mask.high[..., None])
    if mask.case is MaskCase.BITMAP:
        assert mask.seen is not None
        return mask.seen
    return torch.ones_like(keys, dtype=torch.bool)


def _kept_share(dropout: Dropout | None) -> Tensor | float:
    """What becomes of each probability: 0 where it is dropped, otherwise `1 / (1 - p)`."""
    return 1.0 if dropout is None else dropout.kept().double() / (1 - dropout.p)


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
