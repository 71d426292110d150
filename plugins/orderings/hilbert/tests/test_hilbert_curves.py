"""What the Hilbert and Morton curves promise about the order of points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.contracts import Coordinates, Grid
from ringspan_hilbert import Curve, Hilbert, Morton

CURVES = [Hilbert(), Morton()]
INT32_MAX = 2**31 - 1

each_curve = pytest.mark.parametrize("curve", CURVES, ids=lambda curve: curve.name)
full_boxes = pytest.mark.parametrize(
    ("axes", "bits"), [(axes, bits) for axes in (2, 3) for bits in range(1, 6)]
)
grids = st.one_of(
    st.builds(Grid, *[st.integers(1, 40)] * 2), st.builds(Grid, *[st.integers(1, 12)] * 3)
)


@st.composite
def point_clouds(draw: st.DrawFn, largest: int = INT32_MAX) -> Coordinates:
    """Points with many duplicates, and often with many bits."""
    axes = draw(st.integers(2, 3))
    coordinate = st.integers(0, draw(st.sampled_from([min(3, largest), largest])))
    points = draw(st.lists(st.tuples(*[coordinate] * axes), max_size=30))
    return Coordinates(np.array(points, dtype=np.int64).reshape(-1, axes))


def in_order(curve: Curve, tokens: Grid | Coordinates) -> np.ndarray:
    """The points of `tokens` as the curve visits them."""
    path: np.ndarray = tokens.coordinates[curve.places(tokens).tokens.numpy()]
    return path


@each_curve
@given(tokens=grids)
def test_shards_and_weights_make_no_difference(curve: Curve, tokens: Grid) -> None:
    cut = curve.places(tokens, shards=3, weights=(1.0, 2.0, 0.5))
    assert torch.equal(curve.places(tokens).tokens, cut.tokens)


@full_boxes
def test_consecutive_places_of_a_full_box_are_neighbours(axes: int, bits: int) -> None:
    path = in_order(Hilbert(), Grid(*[2**bits] * axes))
    assert (np.abs(np.diff(path, axis=0)).sum(axis=1) == 1).all()


@each_curve
@full_boxes
def test_every_aligned_block_of_a_full_box_occupies_consecutive_places(
    curve: Curve, axes: int, bits: int
) -> None:
    path = in_order(curve, Grid(*[2**bits] * axes))
    for block in range(bits + 1):
        runs = (path >> block).reshape(-1, 2 ** (block * axes), axes)
        assert (runs == runs[:, :1]).all()


@pytest.mark.parametrize("side", [2, 8, 32])
def test_the_plane_curve_is_the_textbook_one(side: int) -> None:
    def index(x: int, y: int) -> int:
        """Hilbert's index by quadrants, from the largest down."""
        total, half = 0, side // 2
        while half:
            right, upper = int(x & half > 0), int(y & half > 0)
            total += half * half * ((3 * right) ^ upper)
            if not upper:
                if right:
                    x, y = side - 1 - x, side - 1 - y
                x, y = y, x
            half //= 2
        return total

    path = in_order(Hilbert(), Grid(side, side))
    assert [index(int(x), int(y)) for x, y in path] == list(range(side * side))


@each_curve
@given(
    shape=st.one_of(
        st.tuples(*[st.integers(2, 40)] * 2),
        st.tuples(*[st.integers(2, 12)] * 3),
    )
)
def test_a_grid_keeps_the_order_of_the_full_box_around_it(
    curve: Curve, shape: tuple[int, ...]
) -> None:
    side = 1 << (max(shape) - 1).bit_length()
    path = in_order(curve, Grid(*[side] * len(shape)))
    assert np.array_equal(in_order(curve, Grid(*shape)), path[(path < shape).all(axis=1)])


@each_curve
@pytest.mark.parametrize("shape", [(1, 37), (37, 1), (1, 37, 1), (1, 1), (1, 1, 1)])
def test_a_line_keeps_its_order(curve: Curve, shape: tuple[int, ...]) -> None:
    tokens = Grid(*shape)
    assert torch.equal(curve.places(tokens).tokens, torch.arange(tokens.N))


@each_curve
@pytest.mark.parametrize("shape", [(1, 8, 16), (8, 1, 16), (8, 16, 1)])
def test_a_plane_in_space_is_ordered_like_the_plane(
    curve: Curve, shape: tuple[int, int, int]
) -> None:
    assert torch.equal(curve.places(Grid(*shape)).tokens, curve.places(Grid(8, 16)).tokens)


@each_curve
@given(tokens=point_clouds(largest=127), doublings=st.integers(0, 24))
def test_doubling_all_coordinates_changes_nothing_up_to_31_bits(
    curve: Curve, tokens: Coordinates, doublings: int
) -> None:
    larger = Coordinates(tokens.coordinates << doublings)
    assert torch.equal(curve.places(larger).tokens, curve.places(tokens).tokens)
