"""The power-of-two box around the tokens, in which a curve runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from ringspan.contracts import InvalidArgument, Sequence, Tokens

if TYPE_CHECKING:
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
        if isinstance(tokens, Sequence):
            raise InvalidArgument(
                "tokens",
                expected=f"Grid or Coordinates, for the ordering {ordering!r} follows a curve "
                "through two or three dimensions",
                got=repr(tokens),
                remedy="Pass tokens=Grid(h, w), or fold the sequence on an invented grid with "
                f"along=Along({ordering!r}, fold=True)",
            )
        points = tokens.coordinates
        if len(points) == 0:
            return cls((torch.empty(0, dtype=torch.int64, device=device),), bits=0)
        points = points - points.min(axis=0)
        sizes = points.max(axis=0)
        varying = [axis for axis, size in enumerate(sizes) if size > 0] or [0]
        return cls(
            tuple(torch.tensor(points[:, axis], device=device) for axis in varying),
            bits=int(sizes.max()).bit_length(),
        )
