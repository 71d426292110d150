"""Which keys of its tile each query sees.

Rows of a tile are sorted by position, so causality, windows and documents all say that
query `i` sees the keys `[low_i, high_i)`, both non-decreasing in `i`. Full attention and
the causal triangle are the two cases that kernels name. What no interval can say, such as a
neighbourhood on a grid, is a bitmap of bounded size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ringspan.contracts.blocks import ActiveBlocks

__all__ = ["CAUSAL", "FULL", "Lengths", "Mask", "MaskCase"]


class MaskCase(StrEnum):
    """The shapes of mask that a kernel may declare."""

    FULL = "full"
    """Every query sees every key."""
    CAUSAL = "causal"
    """As many keys as queries; query `i` sees keys `0 .. i`."""
    INTERVAL = "interval"
    """Query `i` sees keys `low[i] .. high[i] - 1`; a row may see none."""
    BAND = "band"
    """Query `i` sees keys `i - left .. i + right`, as far as there are such keys: windows, and
    triangles that are not square. Every query sees a key, the first one key 0 and the last one
    the last key, so `left >= 0` and `right >= Lk - Lq`. A backend that declares `INTERVAL` but
    not `BAND` is given the same as an interval."""
    BITMAP = "bitmap"
    """Query `i` sees key `j` where `seen[i, j]`; a row may see none."""


@dataclass(frozen=True, slots=True)
class Lengths:
    """Tiles of many lengths, one after the other along the rows of a single batch entry.

    Tile `t` has the query rows `query_bounds[t] .. query_bounds[t + 1] - 1`, the keys likewise.
    No tile is empty.
    """

    query_bounds: Tensor
    """int32 `[tiles + 1]`, on the device of the query."""
    key_bounds: Tensor
    query_longest: int
    key_longest: int


@dataclass(frozen=True, slots=True)
class Mask:
    """The mask of a batch of tiles. All tensors are on the device of the query.

    A query sees a key where `case` says so and, if `key_seen` is given, where it is True for
    that key. The engine gives `key_seen` only to backends whose capabilities have `key_padding`.
    """

    case: MaskCase
    low: Tensor | None = None
    """For `INTERVAL` only: integers that broadcast to `[batch, heads, query_length]`."""
    high: Tensor | None = None
    """For `INTERVAL` only: likewise."""
    seen: Tensor | None = None
    """For `BITMAP` only: bool, broadcasts to `[batch, heads, query_length, key_length]`."""
    key_seen: Tensor | None = None
    """With any case: bool, broadcasts to `[batch, kv_heads, key_length]`; False: padding."""
    blocks: ActiveBlocks | None = None
    """With `FULL` only: what is left of it. The engine gives blocks only to backends whose
    capabilities have `blocks`; causality is in them already."""
    left: int = 0
    """For `BAND` only: how many earlier keys a query sees."""
    right: int = 0
    """For `BAND` only: how many later keys."""
    lengths: Lengths | None = None
    """With `FULL` and `CAUSAL`: tiles of many lengths; the tensors then have one batch entry. The
    engine gives lengths only to backends whose capabilities have `ragged`."""

    def as_interval(self, queries: int, keys: int, device: torch.device) -> Mask:
        """A band said as an interval, for kernels that know no bands."""
        import torch

        row = torch.arange(queries, device=device)
        low, high = (row - self.left).clamp(0, keys), (row + self.right + 1).clamp(0, keys)
        return replace(self, case=MaskCase.INTERVAL, low=low, high=high, left=0, right=0)


FULL = Mask(MaskCase.FULL)
CAUSAL = Mask(MaskCase.CAUSAL)
