"""What the curve through boxes of any size promises."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.contracts import Coordinates, Grid
from ringspan_hilbert import Gilbert, Hilbert
from ringspan_hilbert.gilbert import parts

FARTHEST = 2**31 - 1
planes = st.tuples(*[st.integers(1, 120)] * 2)
boxes = st.tuples(*[st.integers(1, 16)] * 3)


def path(*shape: int) -> np.ndarray:
    """The cells of a grid as the curve visits them."""
    grid = Grid(*shape)
    found: np.ndarray = grid.coordinates[Gilbert().places(grid).tokens.numpy()]
    return found


def diagonals(steps: np.ndarray) -> int:
    """How many steps go along two axes at once; none is longer."""
    assert np.abs(steps).max(initial=0) <= 1
    moved = np.abs(steps).sum(axis=1)
    assert ((moved == 1) | (moved == 2)).all()
    return int((moved == 2).sum())


def by_recursion(w: int, h: int) -> list[tuple[int, int]]:
    """The plane curve from the definition: a list of cells, box by box."""
    if w == 1:
        return [(0, v) for v in range(h)]
    if h == 1:
        return [(u, 0) for u in range(w)]
    a, b = 1 << (w - 1).bit_length() - 1, 1 << (h - 1).bit_length() - 1
    if 2 * w > 3 * h:
        a = a // 2 if w - a == 1 else a
        return by_recursion(a, h) + [(u + a, v) for u, v in by_recursion(w - a, h)]
    return [
        *((v, u) for u, v in by_recursion(b, a)),
        *((u, v + b) for u, v in by_recursion(w, h - b)),
        *((w - 1 - v, b - 1 - u) for u, v in by_recursion(b, w - a)),
    ]


@given(planes)
def test_the_plane_curve_is_the_recursive_one(shape: tuple[int, int]) -> None:
    assert path(*shape).tolist() == [list(cell) for cell in by_recursion(*shape)]


@pytest.mark.parametrize("w", range(1, 41))
def test_steps_in_a_plane_are_straight_but_for_one_where_that_is_impossible(w: int) -> None:
    for h in range(1, 41):
        cells = path(w, h)
        # Colour cells like a chessboard: a straight path from corner to corner of a side has ends
        # of the same colour if the side is odd, and so an odd number of cells.
        impossible = w > 1 and w % 2 == 1 and h % 2 == 0
        assert diagonals(np.diff(cells, axis=0)) == int(impossible)
        assert cells[0].tolist() == [0, 0]
        assert cells[-1].tolist() == ([w - 1, 0] if w > 1 else [0, h - 1])


@pytest.mark.parametrize("w", range(2, 11))
def test_steps_in_space_are_at_worst_diagonal_in_a_plane_and_straight_in_even_boxes(w: int) -> None:
    for h, d in product(range(2, 11), repeat=2):
        cells = path(w, h, d)
        found = diagonals(np.diff(cells, axis=0))
        assert found <= 6
        if w % 2 == 0 and (h % 2 == 0 or d % 2 == 0):
            assert found == 0
        assert cells[-1].tolist() == [w - 1, 0, 0]


@given(boxes)
def test_a_box_is_crossed_without_jumps(shape: tuple[int, int, int]) -> None:
    diagonals(np.diff(path(*shape), axis=0))


@pytest.mark.parametrize("bits", range(1, 7))
def test_a_square_is_crossed_as_by_hilberts_curve_but_for_its_axes(bits: int) -> None:
    square = Grid(2**bits, 2**bits)
    found = square.coordinates[Hilbert().places(square).tokens.numpy()]
    own = path(*square.shape)
    assert np.array_equal(own, found) or np.array_equal(own, found[:, ::-1])


@pytest.mark.parametrize("axes", [2, 3])
@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_every_aligned_block_of_a_full_box_occupies_consecutive_places(
    axes: int, bits: int
) -> None:
    cells = path(*[2**bits] * axes)
    for block in range(bits + 1):
        runs = (cells >> block).reshape(-1, 2 ** (block * axes), axes)
        assert (runs == runs[:, :1]).all()


@given(planes)
def test_the_first_axis_leads(shape: tuple[int, int]) -> None:
    h, w = shape
    turned = Coordinates(Grid(h, w).coordinates[:, ::-1])
    seen = turned.coordinates[Gilbert().places(turned).tokens.numpy()]
    assert np.array_equal(seen, path(w, h))


@given(planes)
def test_a_plane_in_space_is_crossed_like_the_plane(shape: tuple[int, int]) -> None:
    h, w = shape
    plane = Gilbert().places(Grid(h, w)).tokens
    for space in (Grid(1, h, w), Grid(h, 1, w), Grid(h, w, 1)):
        assert torch.equal(Gilbert().places(space).tokens, plane)


@given(
    corner=st.lists(st.sampled_from([0, 1, FARTHEST - 1, FARTHEST]), min_size=3, max_size=3),
    axes=st.integers(2, 3),
)
def test_the_farthest_cells_are_told_apart(corner: list[int], axes: int) -> None:
    ends = [[0] * axes, [FARTHEST] + [0] * (axes - 1), [FARTHEST] * axes]
    near = [[min(corner[0] + 1, FARTHEST), *corner[1:axes]]]
    points = Coordinates(np.unique(np.array([*ends, corner[:axes], *near]), axis=0))
    cells = points.coordinates[Gilbert().places(points).tokens.numpy()].tolist()
    assert cells[0] == ends[0]
    assert cells[-1] == ends[1]
    assert sorted(cells) == points.coordinates.tolist()


@pytest.mark.parametrize(
    ("sizes", "levels", "most"),
    [
        ((1000, 1000), 19, 320),
        ((100, 100, 100), 15, 1400),
        ((2**31,) * 2, 62, 3000),
        ((2**31,) * 3, 62, 12_000),
    ],
)
def test_a_box_falls_into_few_shapes(sizes: tuple[int, ...], levels: int, most: int) -> None:
    found = parts(sizes)
    assert found.levels == levels
    assert found.cuts.shape[1] <= most
