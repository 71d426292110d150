"""How much of a local attention mass a dilated pattern keeps along each curve."""

from __future__ import annotations

import pytest
import torch
from ringspan.contracts import Grid
from ringspan_hilbert import Curve, Hilbert, Morton
from torch import Tensor

PLANE = Grid(64, 64)
SEGMENT_LENGTHS, DILATION_RATES, HEADS = (64, 256, 1024, 4096), (1, 2, 4, 8), 8


def captured_mass(points: Tensor, places: Tensor, sigma: float) -> float:
    """Mean share of a Gaussian around each token that falls on tokens its query sees.

    LongNet's branches in places, heads on blocked offsets, the query's own token included.
    """
    distance = torch.cdist(points, points)
    query, key = (distance <= 5 * sigma).nonzero(as_tuple=True)
    mass = torch.exp(-(distance[query, key] ** 2) / (2 * sigma**2))
    total = torch.zeros(len(points), dtype=torch.float64).index_add(0, query, mass)
    i, j = places[query], places[key]
    shares = []
    for head in range(HEADS):
        seen = torch.zeros_like(i, dtype=torch.bool)
        for w, r in zip(SEGMENT_LENGTHS, DILATION_RATES, strict=True):
            offset = head // (HEADS // r)
            seen |= (i // w == j // w) & (i % w % r == offset) & (j % w % r == offset)
        shares.append(torch.zeros_like(total).index_add(0, query, mass * seen) / total)
    return float(torch.stack(shares).mean())


def in_plane(places: Tensor) -> float:
    cells = torch.tensor(PLANE.coordinates, dtype=torch.float64)
    return captured_mass(cells, places, sigma=2.0)


def in_line(places: Tensor, sigma: float) -> float:
    line = torch.arange(PLANE.N, dtype=torch.float64)[:, None]
    return captured_mass(line, places, sigma)


def test_row_major_keeps_a_third_of_a_local_mass_in_the_plane() -> None:
    assert in_plane(torch.arange(PLANE.N)) == pytest.approx(0.36, abs=0.01)


@pytest.mark.parametrize("curve", [Hilbert(), Morton()], ids=lambda curve: curve.name)
def test_a_curve_keeps_three_quarters_of_a_local_mass_in_the_plane(curve: Curve) -> None:
    assert in_plane(curve.places(PLANE).places) == pytest.approx(0.74, abs=0.01)


@pytest.mark.parametrize(
    ("sigma", "straight", "folded"), [(2, 0.98, 0.83), (8, 0.93, 0.46), (32, 0.71, 0.19)]
)
def test_a_folded_sequence_keeps_less_of_a_local_mass_than_a_straight_one(
    sigma: float, straight: float, folded: float
) -> None:
    assert in_line(torch.arange(PLANE.N), sigma) == pytest.approx(straight, abs=0.01)
    assert in_line(Hilbert().places(PLANE).places, sigma) == pytest.approx(folded, abs=0.01)
