"""Positions that begin anew in each document."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ringspan.contracts.documents import Documents
from ringspan.contracts.work import Indexed

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["in_documents", "restarted"]

_known: WeakKeyDictionary[Indexed, Indexed] = WeakKeyDictionary()


def restarted(
    positions: Int[Tensor, "*rows"], lengths: Int[Tensor, " documents"]
) -> Int[Tensor, "*rows"]:
    """Positions within the sequence, counted from the start of their document.

    Args:
        positions: in `0 .. N - 1`.
        lengths: of the documents, which sum to `N`; on the same device.
    """
    starts = lengths.cumsum(0) - lengths
    return positions - starts[torch.searchsorted(starts, positions.contiguous(), right=True) - 1]


def in_documents(positions: Indexed, documents: Documents | None) -> Indexed:
    """Some of a plan's positions, counted from the start of their document; found out once."""
    if documents is None:
        return positions
    if positions not in _known:
        starts = documents.starts
        document = np.searchsorted(starts, positions.rows, side="right") - 1
        _known[positions] = Indexed(positions.rows - starts[document])
    return _known[positions]
