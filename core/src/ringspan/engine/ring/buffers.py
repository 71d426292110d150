"""Memory for messages, allocated once for a group and reused by every call."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Buffers"]


class Buffers:
    """Named blocks of device memory that only grow.

    Whoever takes a block under a name must be done with what was taken under it before.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._blocks: dict[str, Tensor] = {}
        self.allocations = 0
        """How often memory was allocated: it stands still once a training step has run."""

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(block.nbytes for block in self._blocks.values())

    def take(self, name: str, nbytes: int, most: int) -> Tensor:
        """`nbytes` uninitialised bytes of the block of that name, which has room for `most`."""
        block = self._blocks.get(name)
        if block is None or block.nbytes < nbytes:
            # The old block goes before the new one comes.
            del block
            self._blocks.pop(name, None)
            # A block outlives the mode that it is made in.
            with torch.inference_mode(False):
                block = torch.empty(max(nbytes, most), dtype=torch.uint8, device=self._device)
            self._blocks[name] = block
            self.allocations += 1
        return block[:nbytes]
