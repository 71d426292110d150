"""Query rows in chunks, so that no buffer is quadratic in the length; the keys each row sees."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Mask, MaskCase

from ringspan_manual.grouping import grouped_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["SCORES_PER_CHUNK", "hidden_keys", "row_chunks", "scores"]

SCORES_PER_CHUNK = 1 << 22
"""Most score elements held at once (16 MiB in float32), unless a single row has more."""


def row_chunks(query: Float[Tensor, "B Lq H D"], keys: int) -> Iterator[slice]:
    """Cuts the query rows so that one chunk's scores stay within `SCORES_PER_CHUNK`."""
    batch, length, heads, _ = query.shape
    rows = max(1, SCORES_PER_CHUNK // max(1, batch * heads * keys))
    for start in range(0, length, rows):
        yield slice(start, min(start + rows, length))


def hidden_keys(
    mask: Mask, query: Float[Tensor, "B Lq H D"], rows: slice, keys: int, kv_heads: int
) -> Bool[Tensor, "#B #K #G*R S"] | None:
    """True where a row of the chunk must not see a key; None where every row sees every key."""
    if mask.case is MaskCase.FULL:
        return None
    batch, _, heads, _ = query.shape
    key = torch.arange(keys, device=query.device)
    if mask.case is MaskCase.CAUSAL:
        row = torch.arange(rows.start, rows.stop, device=query.device)
        return (key > row[:, None]).repeat(heads // kv_heads, 1)
    assert mask.low is not None
    assert mask.high is not None
    every_row = (batch, heads, query.shape[1])
    low, high = (
        grouped_rows(bound.broadcast_to(every_row)[..., rows], kv_heads)
        for bound in (mask.low, mask.high)
    )
    return (key < low) | (key >= high)


def scores(
    query: Float[Tensor, "B K G*R D"],
    key: Float[Tensor, "B K S D"],
    hidden: Bool[Tensor, "#B #K #G*R S"] | None,
    scale: float,
) -> Float[Tensor, "B K G*R S"]:
    """`scale * <q, k>`, and -inf where the key is hidden."""
    result = (query @ key.mT).mul_(scale)
    return result if hidden is None else result.masked_fill_(hidden, -torch.inf)
