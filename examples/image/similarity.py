"""A real attention map: how much the patches of a photograph look alike, and how far apart."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from examples.coverage import Rows

if TYPE_CHECKING:
    import ringspan as rs
    from jaxtyping import Float, Int
    from torch import Tensor

__all__ = ["BANDS", "attention_map", "bands"]

BANDS = ("itself", "1-2", "3-6", "7-12", "further")
"""Distances from a query in patches, the larger one of the two axes."""
_FIRST = (1, 3, 7, 13)
"""The least distance of every band but the first."""


def attention_map(features: Float[Tensor, "N C"], queries: Int[Tensor, " Q"], scale: float) -> Rows:
    """`softmax(scale * cosine)` over all tokens, in float64. Nothing in it knows of distances.

    Args:
        features: rows of length 1.
        queries: positions of the rows to compute.
        scale: at 0 all keys are alike; the larger, the more of a row is on few keys.
    """
    features = features.double()
    return Rows(queries, torch.softmax(scale * features[queries] @ features.T, dim=-1))


def bands(grid: rs.Grid, queries: Int[Tensor, " Q"]) -> Int[Tensor, "Q N"]:
    """The number of the band in which each key lies, seen from each query."""
    points = torch.from_numpy(grid.coordinates.copy())
    distance = (points[queries][:, None] - points[None]).abs().amax(-1)
    return torch.bucketize(distance, torch.tensor(_FIRST), right=True)
