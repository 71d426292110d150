"""What a photograph's patches look like, as vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn import functional

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["PATCH", "features", "patches"]

PATCH = 4
"""Pixels along each side of a patch, which is a token."""
COMPONENTS = 12


def patches(photo: Float[Tensor, "3 h w"], size: int) -> Float[Tensor, "N 48"]:
    """The pixels of `size x size` patches from the middle of a photograph, in row-major order."""
    side = min(photo.shape[1:])
    top, left = ((length - side) // 2 for length in photo.shape[1:])
    square = photo[None, :, top : top + side, left : left + side]
    resized = functional.interpolate(
        square, size=(size * PATCH, size * PATCH), mode="bilinear", antialias=True
    )
    return functional.unfold(resized, PATCH, stride=PATCH)[0].T


def features(pixels: Float[Tensor, "N 48"]) -> Float[Tensor, "N 12"]:
    """The first principal components of the patches, whitened; each row has the length 1.

    Whitened, for otherwise a cosine between two patches of a photograph compares little more than
    how bright they are.
    """
    left, _, _ = torch.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    return functional.normalize(left[:, :COMPONENTS], dim=1)
