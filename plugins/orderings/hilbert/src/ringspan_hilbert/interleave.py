"""Bits of several coordinates, dealt in turn into one long sort key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int
    from torch import Tensor

__all__ = ["interleave", "sort_by_interleaved_bits"]

_WORD = 63
"""Bits of an int64 key without its sign."""


def interleave(axes: Sequence[Int[Tensor, " N"]], low: int, high: int) -> Int[Tensor, " N"]:
    """The bits `low .. high - 1` of all axes as one number; of equal bits, the first axis leads.

    Args:
        axes: int64 `[N]` each, not negative; at most 63 bits together.
        low: lowest bit that takes part.
        high: one above the highest bit that takes part.

    Example:
        >>> interleave([torch.tensor([0b10]), torch.tensor([0b11])], 0, 2).item() == 0b1101
        True
    """
    key = torch.zeros_like(axes[0])
    for bit in reversed(range(low, high)):
        for axis in axes:
            key.bitwise_left_shift_(1).bitwise_or_(axis.bitwise_right_shift(bit).bitwise_and_(1))
    return key


def sort_by_interleaved_bits(axes: Sequence[Int[Tensor, " N"]], bits: int) -> Int[Tensor, " N"]:
    """Indices that sort by the interleaved bits of `axes`; equal keys keep their order.

    Exact at any length of key: where the key does not fit one int64 word, stable sorts by
    its words, the least significant first, give the same order.
    """
    order = torch.arange(axes[0].numel(), device=axes[0].device)
    per_word = _WORD // len(axes)
    for low in range(0, bits, per_word):
        key = interleave(axes, low, min(low + per_word, bits))
        order = order[torch.argsort(key[order], stable=True)]
    return order
