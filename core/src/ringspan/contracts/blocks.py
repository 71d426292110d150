"""Block-sparse work as a whole: compressed rows of active blocks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

    Ints = npt.NDArray[np.int64]

__all__ = ["ActiveBlocks"]


@dataclass(frozen=True, eq=False)
class ActiveBlocks:
    """Which blocks of a sequence see which, the same for all heads and sequences of a batch.

    Block `i` is the rows `bounds[i] .. bounds[i + 1] - 1` and sees the blocks
    `indices[indptr[i] : indptr[i + 1]]`, ascending: wholly, or where a bitmap says. All arrays
    are int64 on the host; `on(device)` gives them as tensors.
    """

    bounds: Ints
    """`[blocks + 1]`"""
    indptr: Ints
    """`[blocks + 1]`"""
    indices: Ints
    """`[pairs]`"""
    bitmap: Ints
    """`[pairs]`: the number of the pair's bitmap in `bitmaps`; -1: everything is seen."""
    bitmaps: npt.NDArray[np.bool_]
    """`[number, longest, longest]`: query by key within a pair; shorter blocks use a corner."""
    _tensors: dict[torch.device, tuple[torch.Tensor, ...]] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device) -> tuple[torch.Tensor, ...]:
        """`bounds, indptr, indices, bitmap, bitmaps` on `device`, copied there once."""
        if device not in self._tensors:
            import torch

            arrays = (self.bounds, self.indptr, self.indices, self.bitmap, self.bitmaps)
            self._tensors[device] = tuple(torch.from_numpy(array).to(device) for array in arrays)
        return self._tensors[device]

    @property
    def area(self) -> int:
        """Pairs of a query and a key that it sees."""
        lengths = np.diff(self.bounds)
        queries = np.repeat(lengths, np.diff(self.indptr))
        whole = queries * lengths[self.indices]
        seen = self.bitmaps.sum(axis=(1, 2))
        partial = seen[self.bitmap] if len(seen) else np.zeros_like(whole)
        return int(np.where(self.bitmap < 0, whole, partial).sum())
