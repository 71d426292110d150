"""What the Hilbert and Morton curves promise about the order of points."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.contracts import Coordinates, Grid, InvalidArgument, Sequence
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
@given(tokens=st.one_of(grids, point_clouds()))
def test_any_tokens_give_a_permutation_and_its_inverse(curve: Curve, tokens: Grid) -> None:
    permutation = curve.places(tokens)
    everyone = torch.arange(tokens.N)
    assert permutation.tokens.dtype == permutation.places.dtype == torch.int64
    assert torch.equal(permutation.tokens.sort().values, everyone)
    assert torch.equal(permutation.places[permutation.tokens], everyone)
    assert torch.equal(permutation.tokens[permutation.places], everyone)


@each_curve
@given(tokens=st.one_of(grids, point_clouds()))
def test_places_are_the_same_every_time(curve: Curve, tokens: Grid) -> None:
    assert torch.equal(curve.places(tokens).tokens, curve.places(tokens).tokens)


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
@given(tokens=grids, seed=st.integers(0, 2**32 - 1))
def test_shuffled_points_of_a_grid_are_visited_like_the_grid(
    curve: Curve, tokens: Grid, seed: int
) -> None:
    shuffled = np.random.default_rng(seed).permutation(tokens.coordinates)
    assert np.array_equal(in_order(curve, Coordinates(shuffled)), in_order(curve, tokens))


@each_curve
@given(tokens=point_clouds(largest=1000), offset=st.integers(0, 2**30))
def test_moving_all_points_changes_nothing(curve: Curve, tokens: Coordinates, offset: int) -> None:
    moved = Coordinates(tokens.coordinates + offset)
    assert torch.equal(curve.places(moved).tokens, curve.places(tokens).tokens)


@each_curve
@given(tokens=point_clouds(largest=127), doublings=st.integers(0, 24))
def test_doubling_all_coordinates_changes_nothing_up_to_31_bits(
    curve: Curve, tokens: Coordinates, doublings: int
) -> None:
    larger = Coordinates(tokens.coordinates << doublings)
    assert torch.equal(curve.places(larger).tokens, curve.places(tokens).tokens)


@each_curve
@given(tokens=point_clouds(largest=2))
def test_tokens_at_the_same_point_keep_their_order(curve: Curve, tokens: Coordinates) -> None:
    order = curve.places(tokens).tokens.numpy()
    path = tokens.coordinates[order]
    same = (path[1:] == path[:-1]).all(axis=1)
    assert (order[1:][same] > order[:-1][same]).all()
    # Each distinct point is visited once, so all its tokens stand together.
    assert (~same).sum() + min(tokens.N, 1) == len(np.unique(path, axis=0))


@each_curve
@pytest.mark.parametrize("axes", [2, 3])
def test_no_points_give_an_empty_permutation(curve: Curve, axes: int) -> None:
    permutation = curve.places(Coordinates(np.empty((0, axes), dtype=np.int64)))
    assert permutation.tokens.shape == permutation.places.shape == (0,)
    assert permutation.tokens.dtype == torch.int64


@each_curve
def test_a_plain_sequence_is_refused_with_the_remedy(curve: Curve) -> None:
    with pytest.raises(InvalidArgument, match=rf"tokens: .*{curve.name}.*Sequence\(N=16\)") as e:
        curve.places(Sequence(16))
    assert "Grid(h, w)" in e.value.remedy
    assert "fold=True" in e.value.remedy


@each_curve
def test_the_permutation_lives_on_the_device_asked_for(curve: Curve) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for named in (device, device.type):
        there = curve.places(Grid(5, 6), device=named)
        assert there.tokens.device.type == there.places.device.type == device.type
        assert torch.equal(there.tokens.cpu(), curve.places(Grid(5, 6)).tokens)
