"""The Hilbert curve in any number of dimensions, by exclusive-or of coordinates.

J. Skilling, "Programming the Hilbert curve", AIP Conference Proceedings 707, 381 (2004).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int
    from torch import Tensor

__all__ = ["hilbert_transpose"]


def hilbert_transpose(axes: Sequence[Int[Tensor, " N"]], bits: int) -> list[Int[Tensor, " N"]]:
    """Numbers whose interleaved bits are the points' indices along the Hilbert curve.

    Args:
        axes: coordinates, int64 `[N]` each, in `0 .. 2**bits - 1`.
        bits: the curve fills a box of side `2**bits`.

    Returns:
        As many tensors as `axes`, the same shape and dtype. The arguments are left alone.

    Example:
        >>> [t.tolist() for t in hilbert_transpose([torch.tensor([1]), torch.tensor([0])], 1)]
        [[1], [1]]
    """
    turned = _undo_rotations([axis.clone() for axis in axes], bits)
    return _gray_encode(turned, bits)


def _undo_rotations(axes: list[Tensor], bits: int) -> list[Tensor]:
    """Brings each cell's orientation, from the largest cells down, to that of the whole box."""
    first = axes[0]
    for bit in range(bits - 1, 0, -1):
        below = (1 << bit) - 1
        for axis in axes:
            upper = _all_ones_where(axis, bit)
            # An upper half mirrors the first axis, a lower half swaps this axis with the first.
            swap = (first ^ axis).bitwise_and_(~upper).bitwise_and_(below)
            axis ^= swap
            first ^= swap.bitwise_or_(upper.bitwise_and_(below))
    return axes


def _gray_encode(axes: list[Tensor], bits: int) -> list[Tensor]:
    """Turns bits that say where a cell lies into bits that count along the curve."""
    for before, axis in pairwise(axes):
        axis ^= before
    carry = torch.zeros_like(axes[0])
    for bit in range(bits - 1, 0, -1):
        carry ^= _all_ones_where(axes[-1], bit).bitwise_and_((1 << bit) - 1)
    return [axis ^ carry for axis in axes]


def _all_ones_where(axis: Tensor, bit: int) -> Tensor:
    """-1 where the bit is set, otherwise 0: a mask without a branch."""
    return axis.bitwise_right_shift(bit).bitwise_and_(1).neg_()
