"""The power-of-two box around the tokens, in which a curve runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringspan.contracts import Tokens, axes_of

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["Box"]


@dataclass(frozen=True, slots=True, eq=False)
class Box:
    """Points in a box of side `2**bits` with a corner at the origin.

    `axes` holds the points' coordinates, int64 `[N]` per axis. Axes along which all points
    agree are left out, so that a plane in space is ordered like the plane it is.
    """

    axes: tuple[Int[Tensor, " N"], ...]
    bits: int

    @classmethod
    def around(cls, tokens: Tokens, *, ordering: str, device: torch.device | str) -> Box:
        """The smallest box around `tokens`, measured from their smallest coordinates.

        Raises:
            InvalidArgument: `tokens` is a plain `Sequence`, which has no coordinates.
        """
        axes = axes_of(tokens, ordering=ordering, device=device)
        if tokens.N == 0:
            return cls(axes[:1], bits=0)
        sizes = [int(axis.max()) for axis in axes]
        varying = [axis for axis, size in zip(axes, sizes, strict=True) if size > 0] or axes[:1]
        return cls(tuple(varying), bits=max(sizes).bit_length())
