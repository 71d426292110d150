"""How much of a local attention mass a dilated pattern keeps along each curve."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ringspan.contracts import Coordinates, Grid
from ringspan_hilbert import Curve, Gilbert, Hilbert, Morton
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


def in_plane(places: Tensor, tokens: Grid | Coordinates = PLANE) -> float:
    cells = torch.tensor(tokens.coordinates, dtype=torch.float64)
    return captured_mass(cells, places, sigma=2.0)


def tissue(h: int, w: int) -> Coordinates:
    """The cells of some overlapping discs with holes, as of a slide without its background."""
    y, x = np.mgrid[:h, :w]

    def disc(cy: float, cx: float, radius: float) -> np.ndarray:
        inside: np.ndarray = (y - cy * h) ** 2 + (x - cx * w) ** 2 < (radius * h) ** 2
        return inside

    mask = disc(0.3, 0.3, 0.27) | disc(0.65, 0.6, 0.3) | disc(0.25, 0.8, 0.18)
    mask |= disc(0.8, 0.15, 0.12)
    mask &= ~(disc(0.33, 0.27, 0.09) | disc(0.6, 0.68, 0.11) | disc(0.75, 0.5, 0.06))
    return Coordinates(np.argwhere(mask))


def in_line(places: Tensor, sigma: float) -> float:
    line = torch.arange(PLANE.N, dtype=torch.float64)[:, None]
    return captured_mass(line, places, sigma)


def test_row_major_keeps_a_third_of_a_local_mass_in_the_plane() -> None:
    assert in_plane(torch.arange(PLANE.N)) == pytest.approx(0.36, abs=0.01)


each_curve = pytest.mark.parametrize(
    "curve", [Hilbert(), Morton(), Gilbert()], ids=lambda curve: curve.name
)


@each_curve
def test_a_curve_keeps_three_quarters_of_a_local_mass_in_the_plane(curve: Curve) -> None:
    assert in_plane(curve.places(PLANE).places) == pytest.approx(0.74, abs=0.01)


@each_curve
def test_a_curve_keeps_as_much_on_a_grid_that_is_no_power_of_two(curve: Curve) -> None:
    grid = Grid(48, 80)
    assert in_plane(torch.arange(grid.N), grid) == pytest.approx(0.34, abs=0.01)
    assert in_plane(curve.places(grid).places, grid) == pytest.approx(0.745, abs=0.01)


@pytest.mark.parametrize(
    ("shape", "row_major", "hilbert", "morton", "gilbert"),
    [
        ((64, 64), 0.476, 0.714, 0.705, 0.720),
        ((70, 90), 0.446, 0.712, 0.690, 0.706),
        ((90, 110), 0.382, 0.690, 0.680, 0.695),
    ],
)
def test_continuous_curves_keep_more_than_mortons_of_an_irregular_mask(
    shape: tuple[int, int], row_major: float, hilbert: float, morton: float, gilbert: float
) -> None:
    tokens = tissue(*shape)
    kept = [in_plane(c.places(tokens).places, tokens) for c in (Hilbert(), Morton(), Gilbert())]
    assert kept == pytest.approx([hilbert, morton, gilbert], abs=0.002)
    assert in_plane(torch.arange(tokens.N), tokens) == pytest.approx(row_major, abs=0.002)
    assert min(kept[0], kept[2]) > kept[1]


@pytest.mark.parametrize(
    ("sigma", "straight", "folded"), [(2, 0.98, 0.83), (8, 0.93, 0.46), (32, 0.71, 0.19)]
)
def test_a_folded_sequence_keeps_less_of_a_local_mass_than_a_straight_one(
    sigma: float, straight: float, folded: float
) -> None:
    assert in_line(torch.arange(PLANE.N), sigma) == pytest.approx(straight, abs=0.01)
    assert in_line(Hilbert().places(PLANE).places, sigma) == pytest.approx(folded, abs=0.01)
