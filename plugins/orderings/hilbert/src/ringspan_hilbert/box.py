"""The box around the tokens, in which a curve runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Tokens, axes_of

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["Box"]


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """Points in a box with a corner at the origin.

    `axes` holds the points' coordinates, int32 `[N]` per axis, and `sizes` how many cells the
    box is wide along each. Axes along which all points agree are left out, so that a plane in
    space is ordered like the plane it is.
    """

    axes: tuple[Int[Tensor, " N"], ...]
    sizes: tuple[int, ...]

    @classmethod
    def around(cls, tokens: Tokens, *, ordering: str, device: torch.device | str) -> Box:
        """The smallest box around `tokens`, measured from their smallest coordinates.

        Raises:
            InvalidArgument: `tokens` is a plain `Sequence`, which has no coordinates.
        """
        axes = [x.to(torch.int32) for x in axes_of(tokens, ordering=ordering, device=device)]
        if tokens.N == 0:
            return cls(tuple(axes[:1]), (1,))
        sizes = [int(axis.max()) + 1 for axis in axes]
        varying = [i for i, size in enumerate(sizes) if size > 1] or [0]
        return cls(tuple(axes[i] for i in varying), tuple(sizes[i] for i in varying))

    @property
    def bits(self) -> int:
        """The box fits into one of side `2**bits`."""
        return (max(self.sizes) - 1).bit_length()

    def of(self, indices: Int[Tensor, " n"]) -> Box:
        """Only these points, in the same box."""
        return Box(tuple(axis[indices] for axis in self.axes), self.sizes)
