"""What the plain scans promise about the order of tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.contracts import Coordinates, Grid, InvalidArgument, Ordering, Sequence, Tokens
from ringspan_identity import Identity, RowMajor, Snake, Tiles

SCANS = [Identity(), RowMajor(), Snake(), Tiles(), Tiles(3)]
INT32_MAX = 2**31 - 1


def _label(scan: Ordering) -> str:
    return f"{scan.name}-{scan.size}" if isinstance(scan, Tiles) else scan.name


each_scan = pytest.mark.parametrize("scan", SCANS, ids=_label)
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


def in_order(scan: Ordering, tokens: Grid | Coordinates) -> np.ndarray:
    """The points of `tokens` as the scan visits them."""
    path: np.ndarray = tokens.coordinates[scan.places(tokens).tokens.numpy()]
    return path


@each_scan
@given(tokens=st.one_of(grids, point_clouds()))
def test_shards_and_weights_make_no_difference(scan: Ordering, tokens: Tokens) -> None:
    cut = scan.places(tokens, shards=3, weights=(1.0, 2.0, 0.5))
    assert torch.equal(scan.places(tokens).tokens, cut.tokens)


@given(tokens=st.one_of(st.builds(Sequence, st.integers(0, 50)), grids, point_clouds()))
def test_identity_leaves_any_tokens_where_they_are(tokens: Tokens) -> None:
    assert torch.equal(Identity().places(tokens).places, torch.arange(tokens.N))


@given(tokens=grids)
def test_row_major_leaves_a_grid_as_it_is(tokens: Grid) -> None:
    assert torch.equal(RowMajor().places(tokens).places, torch.arange(tokens.N))


@given(tokens=point_clouds())
def test_row_major_sorts_points_by_their_coordinates(tokens: Coordinates) -> None:
    rows = tokens.coordinates.tolist()
    expected = sorted(range(tokens.N), key=rows.__getitem__)
    assert RowMajor().places(tokens).tokens.tolist() == expected


@given(tokens=grids)
def test_consecutive_places_of_a_snake_on_a_grid_are_neighbours(tokens: Grid) -> None:
    steps = np.abs(np.diff(in_order(Snake(), tokens), axis=0)).sum(axis=1)
    assert (steps == 1).all()


@given(tokens=point_clouds())
def test_a_snake_turns_at_every_row_that_holds_points(tokens: Coordinates) -> None:
    rows: dict[tuple[int, ...], list[int]] = {}
    for *row, last in in_order(Snake(), tokens).tolist():
        rows.setdefault(tuple(row), []).append(last)
    for number, row in enumerate(rows.values()):
        assert row == sorted(row, reverse=number % 2 == 1)
    # A row that is left is not visited again, and planes alternate like rows.
    assert sum(map(len, rows.values())) == tokens.N
    planes: dict[int, list[list[int]]] = {}
    for plane, *within in rows:
        planes.setdefault(plane, []).append(within)
    assert list(planes) == sorted(planes)
    for number, visited in enumerate(planes.values()):
        assert visited == sorted(visited, reverse=number % 2 == 1)


@given(tokens=st.one_of(grids, point_clouds(largest=100)), size=st.integers(1, 9))
def test_tiles_are_row_major_inside_row_major(tokens: Grid | Coordinates, size: int) -> None:
    corner = tokens.coordinates.min(axis=0) if tokens.N else 0
    points = (tokens.coordinates - corner).tolist()
    keys = [([value // size for value in point], point) for point in points]
    expected = sorted(range(tokens.N), key=keys.__getitem__)
    assert Tiles(size).places(tokens).tokens.tolist() == expected


@pytest.mark.parametrize("shape", [(16, 24), (8, 16, 8)])
def test_a_full_tile_occupies_consecutive_places(shape: tuple[int, ...]) -> None:
    visited = in_order(Tiles(), Grid(*shape)) // 8
    runs = visited.reshape(-1, 8 ** len(shape), len(shape))
    assert (runs == runs[:, :1]).all()


def test_tiles_at_the_border_of_a_grid_are_cut() -> None:
    assert Tiles(2).places(Grid(3, 3)).tokens.tolist() == [0, 1, 3, 4, 2, 5, 6, 7, 8]


@pytest.mark.parametrize("size", [0, -1, 2.0, True, None])
def test_a_tile_without_a_proper_size_is_refused(size: object) -> None:
    with pytest.raises(InvalidArgument, match="size: expected an integer >= 1, got"):
        Tiles(size)  # type: ignore[arg-type]
