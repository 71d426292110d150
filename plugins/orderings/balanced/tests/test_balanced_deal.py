"""Who holds what: every token once, in order, and no rank more than its share of the work."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from ringspan.contracts import Coordinates, Grid, Ordering, Sequence, Tokens, shard_sizes
from ringspan_balanced import Striped, Zigzag

Weights = tuple[float, ...] | None
both = pytest.mark.parametrize("ordering", [Zigzag(), Striped()], ids=["zigzag", "striped"])


@st.composite
def deals(draw: st.DrawFn) -> tuple[int, int, Weights]:
    """Tokens, shards and weights; some shards are empty or hold one token."""
    shards = draw(st.integers(1, 9))
    weight = st.one_of(st.integers(0, 5).map(float), st.floats(0, 100))
    many = st.lists(weight, min_size=shards, max_size=shards).filter(lambda w: sum(w) > 0)
    return draw(st.integers(0, 300)), shards, draw(st.none() | many.map(tuple))


def dealt(ordering: Ordering, N: int, shards: int, weights: Weights) -> list[torch.Tensor]:
    """The positions of each shard."""
    places = ordering.places(Sequence(N), shards=shards, weights=weights)
    return list(places.tokens.split(shard_sizes(N, shards, weights)))


@both
@given(deals())
def test_positions_in_a_shard_ascend_and_every_token_is_held_once(
    ordering: Ordering, deal: tuple[int, int, Weights]
) -> None:
    held = dealt(ordering, *deal)
    for positions in held:
        assert (positions.diff() > 0).all()
    assert torch.equal(torch.cat(held).sort().values, torch.arange(deal[0]))


@given(deals())
@example((12, 3, None))
@example((13, 3, (1.0, 2.0, 3.0)))
def test_causal_work_of_zigzag_is_in_proportion_within_half_a_token_s(
    deal: tuple[int, int, Weights],
) -> None:
    N = deal[0]
    for positions in dealt(Zigzag(), *deal):
        work, share = int((positions + 1).sum()), len(positions) * (N + 1) / 2
        assert abs(work - share) <= N / 2


@given(deals())
def test_a_zigzag_shard_is_at_most_two_runs(deal: tuple[int, int, Weights]) -> None:
    for positions in dealt(Zigzag(), *deal):
        assert int((positions.diff() > 1).sum()) <= 1


@given(st.integers(0, 300), st.integers(1, 9))
def test_even_stripes_are_round_robin(N: int, shards: int) -> None:
    for shard, positions in enumerate(dealt(Striped(), N, shards, None)):
        assert torch.equal(positions, torch.arange(shard, max(N, shard), shards))


@given(deals())
def test_the_mean_positions_of_stripes_differ_by_less_than_a_round(
    deal: tuple[int, int, Weights],
) -> None:
    N, shards, _ = deal
    for positions in dealt(Striped(), *deal):
        if len(positions):
            assert abs(float(positions.double().mean()) - (N - 1) / 2) <= (shards - 1) / 2


@given(deals())
def test_at_every_moment_each_stripe_has_its_share(deal: tuple[int, int, Weights]) -> None:
    N, shards, _ = deal
    so_far = torch.arange(1, N + 1)
    for positions in dealt(Striped(), *deal):
        has, part = torch.bucketize(so_far, positions + 1, right=True), len(positions) / max(1, N)
        assert ((has - so_far * part).abs() <= 0.5 + part * shards / 2 + 1e-6).all()


@both
@pytest.mark.parametrize("tokens", [Grid(6, 7), Coordinates([[i % 5, i] for i in range(42)])])
def test_grids_and_points_are_dealt_by_position(ordering: Ordering, tokens: Tokens) -> None:
    expected = ordering.places(Sequence(42), shards=4).tokens
    assert torch.equal(ordering.places(tokens, shards=4).tokens, expected)


@both
def test_one_shard_keeps_the_order_of_positions(ordering: Ordering) -> None:
    assert torch.equal(ordering.places(Sequence(13)).tokens, torch.arange(13))
