"""One mask for everything: per query, an interval of keys.

Rows of a tile are sorted by position, so causality, windows and documents all say that
query `i` sees the keys `[low_i, high_i)`, both non-decreasing in `i`. Full attention and
the causal triangle are the two cases that kernels name.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["CAUSAL", "FULL", "Mask", "MaskCase"]


class MaskCase(StrEnum):
    """The shapes of mask that a kernel may declare."""

    FULL = "full"
    """Every query sees every key."""
    CAUSAL = "causal"
    """As many keys as queries; query `i` sees keys `0 .. i`."""
    INTERVAL = "interval"
    """Query `i` sees keys `low[i] .. high[i] - 1`; a row may see none."""


@dataclass(frozen=True, slots=True)
class Mask:
    """The mask of a batch of tiles.

    `low` and `high` are given for `MaskCase.INTERVAL` only: integer tensors that broadcast to
    `[batch, heads, query_length]`, on the device of the query.
    """

    case: MaskCase
    low: Tensor | None = None
    high: Tensor | None = None


FULL = Mask(MaskCase.FULL)
CAUSAL = Mask(MaskCase.CAUSAL)
