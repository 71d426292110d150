"""Tiles of real tissue: where it is stained, with gaps and an irregular border."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ringspan as rs
import torch

from examples.bundled import photograph

if TYPE_CHECKING:
    from jaxtyping import Bool, Float
    from torch import Tensor

__all__ = ["TILE_DIM", "Slide", "halves", "mask_of", "slide", "tiles_of"]

TILE_DIM = 1536
"""What GigaPath's tile encoder gives for a tile."""


@dataclass(frozen=True, eq=False)
class Slide:
    """The tiles of a slide that have tissue, row after row."""

    points: rs.Coordinates
    x: Float[Tensor, "1 N 1536"]

    @staticmethod
    def of(mask: Bool[Tensor, "h w"], tiles: Float[Tensor, "h w 1536"]) -> Slide:
        """The tiles where the mask is True."""
        return Slide(rs.Coordinates.from_mask(mask), tiles[mask][None])

    def fed(self, ordering: str) -> tuple[Slide, rs.Layout]:
        """The same tiles numbered along an ordering, and the layout that restores their order."""
        layout = rs.Layout(self.points, ordering=ordering)
        points = rs.Coordinates(self.points.coordinates[layout.order])
        return Slide(points, layout.arrange(self.x)), layout


def slide(size: int) -> Slide:
    """Of `size x size` tiles of a picture of colon, those with stained tissue."""
    return Slide.of(mask_of(size), tiles_of(size))


def halves(size: int) -> list[Slide]:
    """The left and the right half of it, as two slides of different shape."""
    mask, tiles = mask_of(size), tiles_of(size)
    return [
        Slide.of(*(x[:, columns] for x in (mask, tiles)))
        for columns in (slice(size // 2), slice(size // 2, size))
    ]


def mask_of(size: int) -> Bool[Tensor, "size size"]:
    """Where a tile's mean colour is more saturated than Otsu's threshold: the stained glands."""
    from skimage.filters import threshold_otsu

    colour = _pixels(size).mean(-1)
    saturation = 1 - colour.amin(-1) / colour.amax(-1)
    mask: Tensor = saturation > float(threshold_otsu(saturation.numpy()))  # type: ignore[no-untyped-call]
    return mask


def tiles_of(size: int) -> Float[Tensor, "size size 1536"]:
    """Colour statistics of the pixels of each tile, through a random matrix.

    They stand for what a tile encoder gives: means, deviations and extremes of red, green and blue.
    """
    pixels = _pixels(size)
    found = torch.cat([pixels.mean(-1), pixels.std(-1), pixels.amin(-1), pixels.amax(-1)], dim=-1)
    found = (found - found.mean((0, 1))) / found.std((0, 1))
    weights = torch.randn(found.shape[-1], TILE_DIM, generator=torch.Generator().manual_seed(0))
    tiles: Tensor = found.float() @ weights / found.shape[-1] ** 0.5
    return tiles


def _pixels(size: int) -> Float[Tensor, "size size 3 pixels"]:
    """The pixels of every tile."""
    photo = photograph("ihc")
    side = photo.shape[-1] // size
    tiles = photo.unfold(1, side, side).unfold(2, side, side)
    return tiles.permute(1, 2, 0, 3, 4).flatten(3)
