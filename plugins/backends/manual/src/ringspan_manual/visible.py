"""Which keys a chunk's rows must not see, and which probabilities dropout leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Mask, MaskCase, kept

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Shaped
    from ringspan.contracts import Dropout
    from torch import Tensor

    from ringspan_manual.chunks import Chunk

__all__ = ["hidden_keys", "kept_share"]


def hidden_keys(
    mask: Mask, chunk: Chunk, kv_heads: int, device: torch.device
) -> Bool[Tensor, "#B #K #G #R #S"] | None:
    """True where a row must not see a key; None where every row sees every key of the chunk."""
    hidden = _hidden_by_case(mask, chunk, kv_heads, device)
    if mask.key_seen is None:
        return hidden
    seen = _part(_aligned(mask.key_seen, 3), chunk.tiles, slice(None), chunk.keys)
    padding = ~seen[:, :, None, None]
    return padding if hidden is None else hidden | padding


def _hidden_by_case(
    mask: Mask, chunk: Chunk, kv_heads: int, device: torch.device
) -> Bool[Tensor, "#B #K #G #R #S"] | None:
    if mask.case is MaskCase.FULL:
        return None
    every_head = slice(None)
    if mask.case is MaskCase.BITMAP:
        assert mask.seen is not None
        seen = _part(_aligned(mask.seen, 4), chunk.tiles, every_head, chunk.rows, chunk.keys)
        return ~_by_group(seen, kv_heads)
    key = torch.arange(chunk.keys.start, chunk.keys.stop, device=device)
    if mask.case in (MaskCase.CAUSAL, MaskCase.BAND):
        row = torch.arange(chunk.rows.start, chunk.rows.stop, device=device)[:, None]
        hidden = key > row + mask.right
        if mask.case is MaskCase.BAND:
            hidden |= key < row - mask.left
        return hidden[None, None, None]
    assert mask.low is not None
    assert mask.high is not None
    low, high = (
        _by_group(_part(_aligned(bound, 3), chunk.tiles, every_head, chunk.rows), kv_heads)
        for bound in (mask.low, mask.high)
    )
    return (key < low[..., None]) | (key >= high[..., None])


def kept_share(
    dropout: Dropout, chunk: Chunk, kv_heads: int, dtype: torch.dtype
) -> Float[Tensor, "B K G*R S"]:
    """What becomes of each probability: 0 where it is dropped, otherwise `1 / (1 - p)`."""
    every_head = slice(None)
    keep = kept(
        dropout.p,
        dropout.seed,
        dropout.batch[chunk.tiles, None],
        dropout.heads,
        _part(dropout.query_positions, chunk.tiles, every_head, chunk.rows),
        _part(dropout.key_positions, chunk.tiles, every_head, chunk.keys),
    )
    return _by_group(keep, kv_heads).flatten(2, 3).to(dtype).div_(1 - dropout.p)


def _aligned(x: Shaped[Tensor, "*axes"], dims: int) -> Shaped[Tensor, "*#aligned"]:
    """`x` with `dims` axes."""
    return x[(None,) * (dims - x.dim())]


def _part(x: Shaped[Tensor, "*#axes"], *slices: slice) -> Shaped[Tensor, "*#part"]:
    """The slices of those axes along which `x` varies."""
    return x[tuple(s if n > 1 else slice(None) for n, s in zip(x.shape, slices, strict=True))]


def _by_group(x: Shaped[Tensor, "#B #H *axes"], kv_heads: int) -> Shaped[Tensor, "#B #K #G *axes"]:
    """The axis of heads in two: key/value heads, and the query heads that share one."""
    return torch.unflatten(x, 1, (1, 1) if x.shape[1] == 1 else (kv_heads, -1))
