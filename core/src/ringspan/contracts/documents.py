"""Packed sequences: several documents one after the other, which do not see each other."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.held import Held, integers

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

__all__ = ["Documents"]


class Documents(Held):
    """Where each document of a packed sequence lies.

    Attention over a packed sequence equals attention over each document alone: segments,
    dilations, windows, curves and positions restart at each document. Any lengths serve; zero is
    one. Build it once and pass it to every layer: plans are found by its digest.

    Example:
        >>> documents = Documents.from_lengths([3, 5])
        >>> documents.N, documents.starts.tolist()
        (8, [0, 3])
    """

    __slots__ = ("tensor",)
    kind: ClassVar[str] = "documents"
    tensor: Tensor
    """The lengths as a tensor on the host: what crosses an operator's border."""

    def __init__(self, lengths: Any) -> None:
        array = integers("documents", lengths, expected="integers >= 0, one length per document")
        if array.ndim != 1:
            raise InvalidArgument(
                "documents", expected="one length per document", got=f"shape {list(array.shape)}"
            )
        if array.size and array.min() < 0:
            at = int(array.argmin())
            raise InvalidArgument(
                "documents", expected="lengths >= 0", got=f"{array[at]} for document {at}"
            )
        # Documents outlive the mode that they are built in, and inference tensors cannot be saved.
        with torch.inference_mode(False):
            self.tensor = torch.tensor(array)
        self._hold(array, np.cumsum(array) - array)

    @classmethod
    def from_lengths(cls, lengths: Any) -> Documents:
        """From the length of each document: a list, an array or a tensor.

        A CUDA tensor is copied to the host, which waits for the device once.
        """
        return cls(lengths)

    @classmethod
    def from_cu_seqlens(cls, cu_seqlens: Any) -> Documents:
        """From cumulative lengths, as flash-attention's varlen functions take them: `[0, .., N]`.

        Example:
            >>> Documents.from_cu_seqlens([0, 3, 8]).lengths.tolist()
            [3, 5]
        """
        array = integers("cu_seqlens", cu_seqlens, expected="integers [documents + 1], from 0 to N")
        if array.ndim != 1 or not array.size or array[0] != 0:
            raise InvalidArgument(
                "cu_seqlens",
                expected="cumulative lengths [documents + 1], the first 0",
                got=f"shape {list(array.shape)}, {array.ravel()[:3].tolist()} ..",
                remedy="Give lengths as Documents.from_lengths(lengths)",
            )
        lengths = np.diff(array)
        if lengths.size and lengths.min() < 0:
            at = int(lengths.argmin())
            raise InvalidArgument(
                "cu_seqlens",
                expected="ascending integers: documents do not overlap",
                got=f"{array[at]} before {array[at + 1]}",
            )
        return cls(lengths)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each document."""
        return self.arrays[0]

    @property
    def starts(self) -> npt.NDArray[np.int64]:
        """Position of each document's first token."""
        return self.arrays[1]

    @property
    def N(self) -> int:  # noqa: N802 - the field's name for the number of tokens
        """Tokens of all documents."""
        return int(self.lengths.sum())

    def __len__(self) -> int:
        return len(self.lengths)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Documents, (self.lengths,))

    def __repr__(self) -> str:
        return f"Documents({len(self)} documents, N={self.N}, digest={self.digest[:8]})"
