"""Work as data: batches of equal tiles, and where their rows lie."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.masks import MaskCase

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch

__all__ = ["Affine", "Indexed", "Rows", "Tiles"]


@dataclass(frozen=True, slots=True)
class Affine:
    """Row `l` of head `k` in tile `t` is `start + t * tile_step + k * head_step + l * step`.

    Such rows are a strided view of a tensor: no copy.
    """

    start: int
    tile_step: int
    head_step: int
    step: int


@dataclass(frozen=True, slots=True, eq=False)
class Indexed:
    """Row `l` of head `k` in tile `t` is `rows[t, k, l]`: read by a gather."""

    rows: npt.NDArray[np.int64]
    _tensors: dict[torch.device, torch.Tensor] = field(default_factory=dict, repr=False)

    def on(self, device: torch.device) -> torch.Tensor:
        """`rows` as a tensor on `device`, copied there once."""
        if device not in self._tensors:
            import torch

            self._tensors[device] = torch.from_numpy(self.rows).to(device)
        return self._tensors[device]


Rows = Affine | Indexed


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """A batch of equal dense problems: `count` tiles for each of some key/value heads.

    Query rows lie in this rank's query; key rows in the keys at hand in the step (this rank's
    own, or the rows just received). No query row occurs twice, and no key row occurs twice.
    """

    count: int
    query_length: int
    key_length: int
    query: Rows
    query_heads: tuple[int, ...]
    """Key/value head numbers; each stands for the group of query heads that share it."""
    key: Rows
    key_heads: tuple[int, ...]
    mask: MaskCase
    high: Indexed | None = None
    """For `INTERVAL`: query `l` of head `k` in tile `t` sees the keys below `high[t, k, l]`."""
    forward_first: bool = False
    """No earlier work of the forward pass writes any of these query rows."""
    backward_first: bool = False
    """The same for the gradient of the query, in the order of the backward pass."""
    key_first: bool = False
    """The same for the gradients of key and value."""

    @property
    def area(self) -> int:
        """Query-key pairs that the mask leaves, over all tiles and key/value heads."""
        if self.high is not None:
            return int(self.high.rows.sum())
        heads = self.count * len(self.query_heads)
        if self.mask is MaskCase.CAUSAL:
            return heads * self.query_length * (self.query_length + 1) // 2
        return heads * self.query_length * self.key_length

    @property
    def summary(self) -> str:
        """One line for a reader: `8 tiles x 4 heads, 2048 x 2048, causal, views`."""
        views = isinstance(self.query, Affine) and isinstance(self.key, Affine)
        return (
            f"{self.count} tiles x {len(self.query_heads)} heads, "
            f"{self.query_length} x {self.key_length}, {self.mask}, "
            f"{'views' if views else 'gathered'}"
        )
