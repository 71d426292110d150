"""How much of a local attention mass a dilated pattern keeps along tiles and a snake."""

from __future__ import annotations

import pytest
import torch
from ringspan.contracts import Grid, Ordering
from ringspan_identity import RowMajor, Snake, Tiles

PLANE, SIGMA = Grid(64, 64), 2.0
SEGMENT_LENGTHS, DILATION_RATES, HEADS = (64, 256, 1024, 4096), (1, 2, 4, 8), 8


@pytest.mark.parametrize(
    ("scan", "share"),
    [(RowMajor(), 0.36), (Snake(), 0.36), (Tiles(), 0.73)],
    ids=["row-major", "snake", "tiles"],
)
def test_square_tiles_keep_twice_the_local_mass_of_rows(scan: Ordering, share: float) -> None:
    """Mean share of a Gaussian around each token that falls on tokens its query sees.

    LongNet's branches in places, heads on blocked offsets, the query's own token included.
    """
    points = torch.tensor(PLANE.coordinates, dtype=torch.float64)
    places = scan.places(PLANE).places
    distance = torch.cdist(points, points)
    query, key = (distance <= 5 * SIGMA).nonzero(as_tuple=True)
    mass = torch.exp(-(distance[query, key] ** 2) / (2 * SIGMA**2))
    total = torch.zeros(len(points), dtype=torch.float64).index_add(0, query, mass)
    i, j = places[query], places[key]
    shares = []
    for head in range(HEADS):
        seen = torch.zeros_like(i, dtype=torch.bool)
        for w, r in zip(SEGMENT_LENGTHS, DILATION_RATES, strict=True):
            offset = head // (HEADS // r)
            seen |= (i // w == j // w) & (i % w % r == offset) & (j % w % r == offset)
        shares.append(torch.zeros_like(total).index_add(0, query, mass * seen) / total)
    assert float(torch.stack(shares).mean()) == pytest.approx(share, abs=0.01)
