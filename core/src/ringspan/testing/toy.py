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
    """Attention in float64, one matrix of scores per tile."""

    name: ClassVar[str] = "toy"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cpu", "cuda"}),
        dtypes=frozenset({"float64", "float32", "bfloat16", "float16"}),
        masks=frozenset(MaskCase),
        value_head_dim_differs=True,
        gqa=True,
    )

    def probe(self, device: DeviceInfo) -> Availability:
        """Always usable."""
        return Availability.yes()

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Mask, scale: float
    ) -> TileOutput:
        """Softmax of all visible scores."""
        scores = _scores(query, key, mask, scale)
        lse = scores.logsumexp(-1)
        P = (scores - lse.masked_fill(lse == -torch.inf, 0.0)[..., None]).exp()
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
    ) -> Grads:
        """Gradients from the probabilities that `lse` gives these keys."""
        heads, kv_heads = query.shape[2], key.shape[2]
        P = (_scores(query, key, mask, scale) - lse.double()[..., None]).exp()
        dO, V = grad_out.double(), spread_heads(value.double(), heads)
        Delta = torch.einsum("bihe,bihe->bhi", dO, out.double())
        dS = scale * P * (torch.einsum("bihe,bjhe->bhij", dO, V) - Delta[..., None])
        dQ = torch.einsum("bhij,bjhd->bihd", dS, spread_heads(key.double(), heads))
        dK = torch.einsum("bhij,bihd->bjhd", dS, query.double())
        dV = torch.einsum("bhij,bihe->bjhe", P, dO)
        grads = (dQ, fold_heads(dK, kv_heads), fold_heads(dV, kv_heads))
        return Grads(*(grad.to(_wide(query)) for grad in grads))


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers `toy`."""
    return [Toy()]


def _scores(query: Tensor, key: Tensor, mask: Mask, scale: float) -> Tensor:
    K = spread_heads(key.double(), query.shape[2])
    scores = scale * torch.einsum("bihd,bjhd->bhij", query.double(), K)
    keys = torch.arange(key.shape[1], device=key.device)
    if mask.case is MaskCase.CAUSAL:
        return scores.masked_fill(keys > keys[:, None], -torch.inf)
    if mask.case is MaskCase.INTERVAL:
        assert mask.low is not None
        assert mask.high is not None
        seen = (mask.low[..., None] <= keys) & (keys < mask.high[..., None])
        return scores.masked_fill(~seen, -torch.inf)
    return scores


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
