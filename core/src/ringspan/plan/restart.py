"""Positions that begin anew in each document."""

from __future__ import annotations

from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.tokens import Grid, Tokens
from ringspan.contracts.work import Indexed

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["check_documents", "in_documents", "restarted"]

_known: WeakKeyDictionary[Indexed, Indexed] = WeakKeyDictionary()


def check_documents(documents: Documents | None, tokens: Tokens) -> None:
    """Refuses documents that are not the tokens', or that one grid cannot hold."""
    if documents is None:
        return
    if documents.N != tokens.N:
        raise InvalidArgument(
            "documents", expected=f"documents that end at N = {tokens.N}", got=repr(documents)
        )
    if isinstance(tokens, Grid):
        raise InvalidArgument(
            "tokens",
            expected="Coordinates beside documents: one grid cannot hold several documents",
            got=repr(tokens),
            remedy="Pass Coordinates of every token in its own document",
        )


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
