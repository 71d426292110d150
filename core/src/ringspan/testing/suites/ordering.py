"""The standard tests of an ordering.

Any tokens are put in order, or refused by an `InvalidArgument` that names them, before any work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ringspan.contracts import (
    Coordinates,
    DeviceInfo,
    Grid,
    InvalidArgument,
    Ordering,
    Permutation,
    Provider,
    Sequence,
    Tokens,
)
from ringspan.testing.suites.devices import torch_device
from ringspan.testing.suites.provider import ProviderSuite, steady

if TYPE_CHECKING:
    from ringspan.testing.pytest_plugin import Verdict

__all__ = ["GeometricOrderingSuite", "OrderingSuite", "grids", "point_clouds"]

FARTHEST = 2**31 - 1
TOKENS: dict[str, Tokens] = {
    "sequence": Sequence(67),
    "one token": Sequence(1),
    "no token": Sequence(0),
    "grid": Grid(12, 20),
    "square": Grid(16, 16),
    "box": Grid(5, 6, 7),
    "cube": Grid(8, 8, 8),
    "row": Grid(1, 37),
    "column": Grid(37, 1),
    "one cell": Grid(1, 1, 1),
    "points": Coordinates([[3, 7], [0, 2], [9, 9], [4, 4]]),
    "points in space": Coordinates([[3, 7, 1], [0, 2, 5], [9, 9, 0]]),
    "points with gaps": Coordinates([[0, 0], [1000, 3], [70_000, 2], [70_000, 1]]),
    "points at the same place": Coordinates([[2, 2], [5, 5], [2, 2], [5, 5], [2, 2]]),
    "points far away": Coordinates([[FARTHEST, 0], [0, FARTHEST], [FARTHEST, FARTHEST]]),
    "one point": Coordinates([[123, 456]]),
    "no point": Coordinates(np.empty((0, 2), dtype=np.int64)),
    "no point in space": Coordinates(np.empty((0, 3), dtype=np.int64)),
}

sequences = st.builds(Sequence, st.integers(0, 70))
grids = st.one_of(
    st.builds(Grid, *[st.integers(1, 40)] * 2), st.builds(Grid, *[st.integers(1, 12)] * 3)
)


@st.composite
def point_clouds(draw: st.DrawFn, largest: int = FARTHEST) -> Coordinates:
    """Points with many duplicates, and often with many bits."""
    axes = draw(st.integers(2, 3))
    coordinate = st.integers(0, draw(st.sampled_from([min(3, largest), largest])))
    points = draw(st.lists(st.tuples(*[coordinate] * axes), max_size=30))
    return Coordinates(np.array(points, dtype=np.int64).reshape(-1, axes))


any_tokens = st.one_of(sequences, grids, point_clouds())
each_kind_of_tokens = pytest.mark.parametrize("tokens", TOKENS.values(), ids=TOKENS)


class OrderingSuite(ProviderSuite, published=True):
    """Subclass it and say, in a fixture, what is tested; pytest finds the tests.

    Example:
        >>> class TestMine(OrderingSuite):
        ...     @pytest.fixture
        ...     def ordering(self):
        ...         return Mine()
    """

    @pytest.fixture
    def ordering(self) -> Ordering:
        """The ordering under test."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `ordering`")

    @pytest.fixture
    def provider(self, ordering: Ordering) -> Provider:
        """The same, for the tests of all kinds."""
        return ordering

    @each_kind_of_tokens
    def test_every_kind_of_tokens_is_ordered_or_refused(
        self, ordering: Ordering, verdict: Verdict, tokens: Tokens
    ) -> None:
        """A place for every token and a token for every place."""
        _assert_ordered(ordering, tokens, verdict)

    @given(tokens=any_tokens)
    @steady
    def test_any_tokens_are_ordered_or_refused(
        self, ordering: Ordering, verdict: Verdict, tokens: Tokens
    ) -> None:
        """The same examples every time."""
        _assert_ordered(ordering, tokens, verdict)

    def test_some_tokens_are_ordered(self, ordering: Ordering) -> None:
        """An ordering that refuses everything orders nothing."""
        assert any(_places(ordering, tokens) for tokens in TOKENS.values() if tokens.N > 1)

    @pytest.mark.parametrize("N", [0, 1, 16])
    def test_a_plain_sequence_is_ordered_or_refused_with_the_remedy(
        self, ordering: Ordering, verdict: Verdict, N: int
    ) -> None:
        """What needs geometry names `Grid`, and `fold=True` for those who insist."""
        found = _answer(ordering, Sequence(N))
        if isinstance(found, Permutation):
            _assert_bijection(found, N)
            verdict.served()
            return
        assert "Grid(" in found.remedy
        assert "fold=True" in found.remedy
        verdict.refused(str(found))

    @each_kind_of_tokens
    def test_places_follow_from_the_arguments_alone(
        self, ordering: Ordering, tokens: Tokens
    ) -> None:
        """The same every time, whatever was drawn or ordered in between; nothing is drawn."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            before = torch.get_rng_state()
            first = _places(ordering, tokens)
            assert torch.equal(torch.get_rng_state(), before)
            torch.manual_seed(2)
            _places(ordering, Grid(3, 9))
            _assert_same(first, _places(ordering, tokens))

    @each_kind_of_tokens
    @pytest.mark.parametrize("shards", [1, 3, 8])
    def test_shards_of_any_number_and_weight_are_served(
        self, ordering: Ordering, tokens: Tokens, shards: int
    ) -> None:
        """More shards than tokens too; only orderings that balance work look at them."""
        whole = _places(ordering, tokens)
        for weights in (None, tuple(1000.0**i for i in range(shards))):
            cut = _places(ordering, tokens, shards=shards, weights=weights)
            assert (cut is None) == (whole is None)
            if cut is not None:
                _assert_bijection(cut, tokens.N)

    @given(tokens=grids)
    @steady
    def test_a_grid_is_ordered_as_its_points_are(self, ordering: Ordering, tokens: Grid) -> None:
        """Packed documents give each document's points: packed must equal each document alone."""
        points = Coordinates(tokens.coordinates)
        _assert_same(_places(ordering, tokens), _places(ordering, points))

    @each_kind_of_tokens
    def test_the_permutation_lives_on_the_device_asked_for(
        self, ordering: Ordering, device: DeviceInfo, tokens: Tokens
    ) -> None:
        """With the same places as on the CPU."""
        here = _places(ordering, tokens)
        for where in (device.type, torch_device(device)):
            there = _places(ordering, tokens, device=where)
            if there is not None:
                assert there.tokens.device.type == there.places.device.type == device.type
                there = Permutation(there.tokens.cpu(), there.places.cpu())
            _assert_same(here, there)

    @each_kind_of_tokens
    def test_tokens_are_left_alone(self, ordering: Ordering, tokens: Tokens) -> None:
        """Their coordinates are shared by every call."""
        if isinstance(tokens, Sequence):
            return
        before = tokens.coordinates.copy()
        _places(ordering, tokens)
        assert np.array_equal(before, tokens.coordinates)


class GeometricOrderingSuite(OrderingSuite, published=True):
    """For orderings that look at nothing but where points lie to each other.

    It has the tests of `OrderingSuite` too.
    """

    @given(tokens=grids, seed=st.integers(0, 2**32 - 1))
    @steady
    def test_shuffled_points_of_a_grid_are_visited_like_the_grid(
        self, ordering: Ordering, tokens: Grid, seed: int
    ) -> None:
        """The path does not depend on how tokens are numbered."""
        shuffled = np.random.default_rng(seed).permutation(tokens.coordinates)
        assert np.array_equal(_path(ordering, Coordinates(shuffled)), _path(ordering, tokens))

    @given(tokens=point_clouds(largest=1000), offset=st.integers(0, 2**30))
    @steady
    def test_moving_all_points_changes_nothing(
        self, ordering: Ordering, tokens: Coordinates, offset: int
    ) -> None:
        """Coordinates count from the smallest."""
        moved = Coordinates(tokens.coordinates + offset)
        assert torch.equal(ordering.places(moved).tokens, ordering.places(tokens).tokens)

    @given(tokens=point_clouds(largest=2))
    @steady
    def test_tokens_at_the_same_point_stand_together_in_their_order(
        self, ordering: Ordering, tokens: Coordinates
    ) -> None:
        """Each distinct point is visited once."""
        order = ordering.places(tokens).tokens.numpy()
        path = tokens.coordinates[order]
        same = (path[1:] == path[:-1]).all(axis=1)
        assert (order[1:][same] > order[:-1][same]).all()
        assert (~same).sum() + min(tokens.N, 1) == len(np.unique(path, axis=0))

    def test_a_plain_sequence_has_no_geometry(self, ordering: Ordering) -> None:
        """It is refused, by the name of the ordering."""
        with pytest.raises(InvalidArgument, match=ordering.name):
            ordering.places(Sequence(16))


def _places(ordering: Ordering, tokens: Tokens, **options: Any) -> Permutation | None:
    """The permutation; None where the ordering refuses the tokens by name."""
    found = _answer(ordering, tokens, **options)
    if isinstance(found, Permutation):
        return found
    assert found.argument == "tokens", f"it refuses {found.argument}, and not the tokens"
    return None


def _answer(ordering: Ordering, tokens: Tokens, **options: Any) -> Permutation | InvalidArgument:
    try:
        return ordering.places(tokens, **options)
    except InvalidArgument as refusal:
        return refusal


def _path(ordering: Ordering, tokens: Grid | Coordinates) -> np.ndarray:
    """The points of `tokens` as the ordering visits them."""
    path: np.ndarray = tokens.coordinates[ordering.places(tokens).tokens.numpy()]
    return path


def _assert_ordered(ordering: Ordering, tokens: Tokens, verdict: Verdict) -> None:
    permutation = _places(ordering, tokens)
    if permutation is None:
        verdict.refused(f"{type(tokens).__name__} of {tokens.N} tokens")
    else:
        _assert_bijection(permutation, tokens.N)
        verdict.served()


def _assert_bijection(permutation: Permutation, N: int) -> None:
    assert isinstance(permutation, Permutation)
    everyone = torch.arange(N)
    tokens, places = permutation.tokens.cpu(), permutation.places.cpu()
    assert tokens.dtype == places.dtype == torch.int64
    assert torch.equal(tokens.sort().values, everyone)
    assert torch.equal(places[tokens], everyone)
    assert torch.equal(tokens[places], everyone)


def _assert_same(one: Permutation | None, other: Permutation | None) -> None:
    """The same permutation, or refused both times."""
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert torch.equal(one.tokens, other.tokens)
        assert torch.equal(one.places, other.places)
