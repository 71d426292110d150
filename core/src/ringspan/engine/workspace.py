"""Memory for the wide sums of 16-bit calls on a CPU, kept from one call to the next.

The C library returns blocks of 32 MiB and more to the system at once, and a new one is faulted in
page by page: that took longer than the sums themselves. Devices have caching allocators.
"""

from __future__ import annotations

import threading

import torch
from torch import Tensor

__all__ = ["borrow", "give_back", "release"]

_SMALLEST = 2**25
_KEPT_BYTES = 2**28


class _Kept(threading.local):
    def __init__(self) -> None:
        self.blocks: list[Tensor] = []


_kept = _Kept()


def borrow(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, on a CPU in kept memory where a block of that size is there."""
    for position, block in enumerate(_kept.blocks):
        if device.type == "cpu" and block.shape == shape and block.dtype == dtype:
            return _kept.blocks.pop(position)
    # A block outlives the mode that it is made in, and inference tensors cannot be changed later.
    with torch.inference_mode(False):
        return torch.empty(shape, dtype=dtype, device=device)


def give_back(block: Tensor) -> None:
    """Keeps a borrowed tensor that nobody reads any more, up to 256 MiB per thread."""
    if block.device.type != "cpu" or block.nbytes < _SMALLEST or not block.is_contiguous():
        return
    _kept.blocks.append(block)
    while sum(kept.nbytes for kept in _kept.blocks) > _KEPT_BYTES:
        _kept.blocks.pop(0)


def release() -> None:
    """Lets go of all memory kept by this thread."""
    _kept.blocks.clear()
