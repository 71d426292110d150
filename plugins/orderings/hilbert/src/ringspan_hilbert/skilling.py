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
        axes: coordinates, int32 or int64 `[N]` each, in `0 .. 2**bits - 1`.
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
    sign = torch.iinfo(first.dtype).bits - 1
    upper, swap = torch.empty_like(first), torch.empty_like(first)
    for bit in range(bits - 1, 0, -1):
        below = (1 << bit) - 1
        for axis in axes:
            # All ones where the bit is set, without a branch: it becomes the sign, which spreads.
            torch.bitwise_left_shift(axis, sign - bit, out=upper)
            upper.bitwise_right_shift_(sign).bitwise_and_(below)
            # An upper half mirrors the first axis, a lower half swaps this axis with the first.
            if axis is not first:
                torch.bitwise_xor(first, axis, out=swap)
                swap.bitwise_and_(upper ^ below)
                axis ^= swap
                upper ^= swap
            first ^= upper
    return axes


def _gray_encode(axes: list[Tensor], bits: int) -> list[Tensor]:
    """Turns bits that say where a cell lies into bits that count along the curve."""
    for before, axis in pairwise(axes):
        axis ^= before
    carry = axes[-1] >> 1
    reach = 1
    while reach < bits:
        # Each bit becomes the parity of itself and all bits above it.
        carry ^= carry >> reach
        reach *= 2
    return [axis ^ carry for axis in axes]
