"""Padded rows as one packed sequence, and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from torch import Tensor

__all__ = ["Packing"]


@dataclass(frozen=True)
class Packing:
    """Where the real tokens of padded rows stand, each row a document of its own."""

    batch: int
    tokens: int
    rows: Int[Tensor, " total"]
    """Of all rows one after the other, the real ones."""
    documents: Documents

    @classmethod
    def of(cls, padding: Bool[Tensor, "B N"] | None, x: Float[Tensor, "B N E"]) -> Packing | None:
        """For a mask that is True for padding in `x`; None where nothing is padded."""
        if padding is None:
            return None
        if not isinstance(padding, torch.Tensor) or padding.shape != x.shape[:2]:
            raise InvalidArgument(
                "key_padding_mask",
                expected=f"shape {list(x.shape[:2])}, True for padding",
                got=f"shape {list(padding.shape)}"
                if isinstance(padding, torch.Tensor)
                else type(padding).__name__,
            )
        if padding.is_floating_point() or padding.is_complex():
            raise InvalidArgument(
                "key_padding_mask",
                expected="bool, or integers of which any but 0 is padding",
                got=str(padding.dtype),
            )
        real = padding == 0
        lengths = real.sum(1)
        documents = Documents.from_lengths(lengths)
        if real.numel() == documents.N:
            return None
        rows = real.flatten().nonzero().squeeze(1).to(x.device)
        return cls(x.shape[0], x.shape[1], rows, documents)

    def places(self) -> tuple[Int[Tensor, " total"], Int[Tensor, " total"]]:
        """Each token's position in its row, and how many tokens that row has."""
        lengths = self.documents.lengths
        position = np.arange(self.documents.N) - np.repeat(self.documents.starts, lengths)
        device = self.rows.device
        return (
            torch.from_numpy(position).to(device),
            torch.from_numpy(np.repeat(lengths, lengths)).to(device),
        )

    def pack(self, x: Float[Tensor, "B N H D"]) -> Float[Tensor, "1 total H D"]:
        """The real tokens alone."""
        return x.flatten(0, 1).index_select(0, self.rows)[None]

    def unpack(self, x: Float[Tensor, "1 total H D"]) -> Float[Tensor, "B N H D"]:
        """Real tokens back where they stood, zeros for padding."""
        spread = x.new_zeros(self.batch * self.tokens, *x.shape[2:])
        return spread.index_copy(0, self.rows, x[0]).view(self.batch, self.tokens, *x.shape[2:])
