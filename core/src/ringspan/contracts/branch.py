"""A batch of tiles inside whole tensors: for kernels that read and write rows where they lie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ringspan.contracts.masks import MaskCase

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    from ringspan.contracts.selection import Selection

__all__ = ["Branch", "BranchDropout", "Piece", "Placed"]


@dataclass(frozen=True, slots=True)
class BranchDropout:
    """Dropout as `ringspan.contracts.dropout` draws it, for rows where they lie.

    The number of a sequence in the batch and of a query head are those of the whole tensors.
    """

    p: float
    seed: int
    query_positions: Int[Tensor, " N"]
    """Of each query row, restarted in documents."""
    key_positions: Int[Tensor, " M"]
    """Of each key row at hand."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Which rows of which heads attend to which, and how.

    `T` tiles, `K` groups of `G` query heads that share a key/value head; `N` query rows and `M`
    key rows in the whole tensors. Masks are those of `Mask`, with a tile's tensors stored once
    for the batch.
    """

    query: Selection
    key: Selection
    """As many tiles and groups as `query`; its own group is 1."""
    case: MaskCase
    scale: float
    low: Int[Tensor, "T heads Lq"] | None = None
    """For `INTERVAL`, with `K` heads or one for all."""
    high: Int[Tensor, "T heads Lq"] | None = None
    left: int = 0
    """For `BAND`."""
    right: int = 0
    table: Bool[Tensor, "bitmaps Lq Lk"] | None = None
    """For `BITMAP`: tile `t` has the bitmap `table[which[t]]`."""
    which: Int[Tensor, " T"] | None = None
    key_seen: Bool[Tensor, "B M"] | None = None
    """False for padded key rows."""
    dropout: BranchDropout | None = None


class Placed(NamedTuple):
    """Some rows of some heads of a tensor `[B, N, H, D]`."""

    rows: Selection
    tensor: Tensor


class Piece(NamedTuple):
    """What one launch made for some rows: `x` `[B * T, L, K * G, D]`, in order of the selection.

    With an `lse` `[B * T, K * G, L]` pieces merge by the law of the log-sum-exp; without, they add.
    """

    rows: Selection
    x: Tensor
    lse: Tensor | None = None
