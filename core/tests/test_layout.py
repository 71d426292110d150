"""Layouts: a partition of the positions, however it is cut."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan import Coordinates, Grid, Layout
from ringspan.contracts import Availability, DeviceInfo, Ordering, Permutation, shard_sizes
from ringspan.errors import BrokenContract, InvalidArgument, UnknownProvider
from ringspan.plan.orders import order


@given(st.integers(0, 200), st.integers(1, 9), st.data())
def test_every_position_is_held_by_exactly_one_rank(
    N: int, world_size: int, data: st.DataObject
) -> None:
    weights = data.draw(
        st.none()
        | st.lists(st.floats(0, 10), min_size=world_size, max_size=world_size)
        .filter(lambda w: sum(w) > 0.1)
        .map(tuple)
    )
    layout = Layout(N, world_size, weights=weights)
    held = torch.cat([layout.positions(rank) for rank in range(world_size)])
    assert torch.equal(held.sort().values, torch.arange(N))
    assert sum(layout.sizes) == N


@given(st.integers(0, 10_000), st.integers(1, 20))
def test_even_shards_differ_by_at_most_one_token(N: int, shards: int) -> None:
    sizes = shard_sizes(N, shards, None)
    assert max(sizes) - min(sizes) <= 1
    assert sizes == tuple(sorted(sizes, reverse=True))


def test_sharding_and_gathering_in_one_process_changes_nothing() -> None:
    x = torch.randn(2, 10, 3, requires_grad=True)
    layout = Layout(10)
    back = layout.gather(layout.shard(x))
    assert torch.equal(back, x)
    upstream = torch.randn_like(x)
    (grad,) = torch.autograd.grad(back, x, upstream)
    assert torch.equal(grad, upstream)


def test_shards_are_cut_along_any_dimension() -> None:
    x = torch.arange(12).reshape(6, 2)
    assert Layout(6, 3).shard(x, rank=2, dim=0).tolist() == [[8, 9], [10, 11]]
    assert Layout(6, 3).shard(x, rank=0, dim=-2).tolist() == [[0, 1], [2, 3]]


def test_explicit_sizes_may_be_zero() -> None:
    layout = Layout(5, 3, sizes=(0, 5, 0))
    assert [len(layout.positions(rank)) for rank in range(3)] == [0, 5, 0]


def test_equal_layouts_are_equal_and_hash_alike() -> None:
    assert Layout(8, 2) == Layout(8, 2, sizes=(4, 4))
    assert hash(Layout(Grid(2, 4), 2)) == hash(Layout(8, 2, tokens=Grid(2, 4)))
    assert Layout(8, 2) != Layout(8, 2, weights=(3.0, 1.0))


def test_coordinates_are_equal_by_content() -> None:
    points = [[0, 1], [5, 5], [2, 2]]
    assert Layout(Coordinates(points)) == Layout(Coordinates(torch.tensor(points)))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"N": -1}, "N"),
        ({"N": 2.5}, "N"),
        ({"N": True}, "N"),
        ({"N": 5, "world_size": 0}, "world_size"),
        ({"N": 5, "world_size": 2, "weights": (1.0,)}, "weights"),
        ({"N": 5, "world_size": 2, "weights": (0.0, 0.0)}, "weights"),
        ({"N": 5, "world_size": 2, "weights": (-1.0, 2.0)}, "weights"),
        ({"N": 5, "world_size": 2, "weights": (float("nan"), 2.0)}, "weights"),
        ({"N": 5, "world_size": 2, "sizes": (2, 2)}, "sizes"),
        ({"N": 5, "world_size": 2, "sizes": (6, -1)}, "sizes"),
        ({"N": 5, "world_size": 2, "sizes": (2, 3), "weights": (1.0, 1.0)}, "sizes"),
        ({"N": 5, "tokens": Grid(2, 3)}, "N"),
        ({"N": 5, "ordering": 3}, "ordering"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused_by_name(
    arguments: dict[str, object], name: str
) -> None:
    with pytest.raises(InvalidArgument, match="expected") as refusal:
        Layout(**arguments)  # type: ignore[arg-type]
    assert refusal.value.argument == name


def test_a_rank_outside_the_layout_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="rank"):
        Layout(5, 2).positions(2)


def test_a_shard_of_several_needs_a_rank_where_there_is_no_process_group() -> None:
    with pytest.raises(InvalidArgument, match="init_process_group"):
        Layout(6, 2).shard(torch.zeros(1, 6))


def test_a_tensor_of_another_length_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="6 tokens along dimension 1"):
        Layout(6, 2).shard(torch.zeros(1, 5), rank=0)


def test_an_unknown_ordering_is_refused_by_name() -> None:
    with pytest.raises(UnknownProvider, match="peano"):
        Layout(Grid(2, 2), ordering="peano").positions(0)


@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 2, 2, 2), (2.0, 2)])
def test_a_grid_has_two_or_three_sizes(shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match="Grid"):
        Grid(*shape)


@pytest.mark.parametrize("points", [[1, 2], [[1.5, 2.0]], [[1, 2, 3, 4]], [[-1, 0]], [[2**31, 0]]])
def test_coordinates_are_integers_of_two_or_three_axes(points: object) -> None:
    with pytest.raises(InvalidArgument, match="Coordinates"):
        Coordinates(points)


class _Broken(Ordering):
    """An ordering that returns whatever it was built with."""

    name = "broken"

    def __init__(self, answer: object) -> None:
        self._answer = answer

    def probe(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def places(self, *_: object, **__: object) -> Permutation:
        return self._answer  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (Permutation(torch.tensor([0, 0, 2]), torch.tensor([0, 0, 2])), "0 at index"),
        (Permutation(torch.tensor([0, 1, 3]), torch.tensor([0, 1, 3])), "3 at index 2"),
        (Permutation(torch.tensor([0, 1, -1]), torch.tensor([0, 1, 2])), "-1 at index 2"),
        (Permutation(torch.arange(3.0), torch.arange(3.0)), "torch.float32"),
        (Permutation(torch.arange(3)[None], torch.arange(3)[None]), "shape"),
        (Permutation(torch.arange(2), torch.arange(2)), "shape"),
        (torch.arange(3), "Tensor"),
        (None, "NoneType"),
    ],
)
def test_an_ordering_that_gives_no_permutation_is_named(
    answer: object, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Catalogue:
        def provider(self, kind: str, name: str) -> Ordering:
            return _Broken(answer)

    monkeypatch.setattr("ringspan.plan.orders.catalogue", Catalogue)
    order.cache_clear()
    with pytest.raises(BrokenContract, match="broken") as refusal:
        Layout(3, ordering="broken").positions(0)
    assert fault in refusal.value.got
