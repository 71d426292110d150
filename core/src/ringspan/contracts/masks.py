"""Which keys of its tile each query sees.

Rows of a tile are sorted by position, so causality, windows and documents all say that
query `i` sees the keys `[low_i, high_i)`, both non-decreasing in `i`. Full attention and
the causal triangle are the two cases that kernels name. What no interval can say, such as a
neighbourhood on a grid, is a bitmap of bounded size.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from ringspan.contracts.blocks import ActiveBlocks

__all__ = ["CAUSAL", "FULL", "Mask", "MaskCase"]


class MaskCase(StrEnum):
    """The shapes of mask that a kernel may declare."""

    FULL = "full"
    """Every query sees every key."""
    CAUSAL = "causal"
    """As many keys as queries; query `i` sees keys `0 .. i`."""
    INTERVAL = "interval"
    """Query `i` sees keys `low[i] .. high[i] - 1`; a row may see none."""
    BITMAP = "bitmap"
    """Query `i` sees key `j` where `seen[i, j]`; a row may see none."""


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


FULL = Mask(MaskCase.FULL)
CAUSAL = Mask(MaskCase.CAUSAL)
