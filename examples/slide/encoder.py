"""A slide encoder in GigaPath's configuration, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ringspan as rs
import torch
from torch import nn

from examples.slide.tissue import TILE_DIM

if TYPE_CHECKING:
    from jaxtyping import Float
    from ringspan.contracts.pattern import Pattern
    from torch import Tensor

__all__ = ["GIGAPATH", "GIGAPATH_PATTERN", "SlideEncoder", "Width", "position_embedding"]

GIGAPATH_PATTERN = rs.Dilated.torchscale((1024, 5792, 32768, 185363, 1048576), (1, 2, 4, 8, 16))
"""Source: the slide encoder of GigaPath, Nature 2024, doi 10.1038/s41586-024-07441-w."""


@dataclass(frozen=True)
class Width:
    """How large an encoder is."""

    layers: int = 12
    embed_dim: int = 768
    heads: int = 16


GIGAPATH = Width()


class SlideEncoder(nn.Module):
    """An embedding of each tile of a slide, from all others that the pattern shows to it.

    GigaPath adds a class token, and its layers have torchscale's norms; here are neither, and
    the embedding of a slide is the mean over its tiles.

    Args:
        pattern: of all layers.
        width: layers, channels and heads.

    Example:
        >>> from examples.slide.tissue import slide
        >>> tissue = slide(32)
        >>> encoder = SlideEncoder(GIGAPATH_PATTERN, Width(layers=1, embed_dim=64))
        >>> encoder(tissue.x, tissue.points).shape == (1, tissue.points.N, 64)
        True
    """

    def __init__(self, pattern: Pattern, width: Width = GIGAPATH) -> None:
        super().__init__()
        channels = width.embed_dim
        self.project = nn.Linear(TILE_DIM, channels)
        self.blocks = nn.ModuleList(
            rs.nn.TransformerBlock(
                rs.nn.SelfAttention(
                    channels, width.heads, pattern, causal=False, rotary=False, bias=True
                ),
                bias=True,
            )
            for _ in range(width.layers)
        )
        self.norm = nn.LayerNorm(channels)

    def forward(
        self,
        x: Float[Tensor, "1 N 1536"],
        points: rs.Coordinates,
        *,
        layout: rs.Layout | None = None,
        documents: rs.Documents | None = None,
    ) -> Float[Tensor, "1 N E"]:
        """Embeddings in the order of `x`, however a layout stores tiles between the layers."""
        y = self.project(x) + position_embedding(points, self.norm.normalized_shape[0])
        if layout is not None:
            y = layout.arrange(y)
        for block in self.blocks:
            y = block(y, tokens=points, layout=layout, documents=documents)
        if layout is not None:
            y = layout.restore(y)
        normed: Tensor = self.norm(y)
        return normed


def position_embedding(points: rs.Coordinates, channels: int) -> Float[Tensor, "N E"]:
    """Sines and cosines of the coordinates: half of the channels for each axis.

    Source: arXiv 2111.06377, as in GigaPath; coordinates are in tiles.
    """
    rates = 1e4 ** -(torch.arange(channels // 4, dtype=torch.float64) / (channels // 4))
    angles = torch.from_numpy(points.coordinates.copy())[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(1).float()
