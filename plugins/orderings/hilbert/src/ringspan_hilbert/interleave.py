"""Bits of several coordinates, dealt in turn into one long sort key."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int
    from torch import Tensor

__all__ = ["WORD", "bits_of_word", "interleave"]

WORD = 63
"""Bits of an int64 key without its sign."""


def bits_of_word(word: int, bits: int, axes: int) -> tuple[int, int]:
    """The lowest bit of each axis that a word of the key holds, and one above the highest.

    Word 0 is the most significant.

    Example:
        >>> bits_of_word(0, 31, 3), bits_of_word(1, 31, 3)
        ((10, 31), (0, 10))
    """
    per_word = WORD // axes
    high = max(bits - word * per_word, 0)
    return max(high - per_word, 0), high


def interleave(axes: Sequence[Int[Tensor, " N"]]) -> Int[Tensor, " N"]:
    """The bits of all axes as one int64 number; of equal bits, the first axis leads.

    Args:
        axes: integers `[N]` each, not negative, of at most 63 bits together.

    Example:
        >>> interleave([torch.tensor([0b10]), torch.tensor([0b11])]).item() == 0b1101
        True
    """
    key, *others = (_spread(axis.to(torch.int64), len(axes)) for axis in axes)
    for digits in others:
        key = key.bitwise_left_shift_(1).bitwise_or_(digits)
    return key


def _spread(x: Tensor, stride: int) -> Tensor:
    """Bit `i` goes to bit `i * stride`: halves of the bits move apart, then their halves, .."""
    if stride == 1:
        return x.clone()
    moved = torch.empty_like(x)
    for run in (16, 8, 4, 2, 1):
        torch.bitwise_left_shift(x, run * (stride - 1), out=moved)
        # Not in place: a wide enough dtype handed over is not copied by `to`.
        x = (x | moved).bitwise_and_(_runs(run, stride))
    return x


def _runs(run: int, stride: int) -> int:
    """Runs of so many ones, `run * stride` apart, in 63 bits."""
    ones = (1 << run) - 1
    return sum(ones << start for start in range(0, WORD, run * stride)) & ((1 << WORD) - 1)
