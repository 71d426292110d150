"""A checksum of a message, for `debug = true`."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["CHECKSUM_BYTES", "checksum"]

CHECKSUM_BYTES = 8
_MIX = -7046029254386353131
"""An odd number with bits all over: 2**64 over the golden ratio, as a signed one."""


def checksum(content: Tensor) -> Tensor:
    """A 64-bit checksum of bytes, int64 `[1]` on their device.

    Each word counts with a factor of its own, so that words that changed places do not cancel.
    """
    words = content.new_zeros(-(-content.numel() // 8) * 8)
    words[: content.numel()] = content
    values = words.view(torch.int64)
    factors = torch.arange(1, len(values) + 1, device=content.device) * _MIX | 1
    return (values * factors).sum().view(1)
