"""A causal ring on zigzag and striped shards: even work, and tiles that every kernel takes."""

from __future__ import annotations

from itertools import product

import pytest
import ringspan as rs
from ringspan.contracts import MaskCase, Tiles
from ringspan.plan.balance import busiest
from ringspan.plan.schedule import make_plan
from ringspan.plan.steps import Plan

RANKS, LIMIT = 4, 1.05
ORDERINGS = ("zigzag", "striped")
SHORT, LONG = (255, 1000, 1024), (4096, 4097, 16387)
WEIGHTS = (None, (1.0, 2.0, 3.0, 4.0), (1.0, 1.0, 1.0, 2.5), (0.0, 1.0, 5.0, 1.0))
PATTERNS = (
    rs.Dense(),
    rs.Dilated((16, 64, 256), (1, 2, 4)),
    rs.HeadGroups((50, 300), (1, 3)),
    rs.Consecutive((64, 30), (4, 2)),
)


def plans(pattern: rs.Dense | rs.Dilated, layout: rs.Layout) -> list[Plan]:
    ranks = range(layout.world_size)
    return [make_plan(pattern, causal=True, kv_heads=4, layout=layout, rank=rank) for rank in ranks]


def computed(tiles: Tiles) -> int:
    """Pairs that a kernel touches: all of a tile but for the far side of a triangle."""
    rows = tiles.query_length
    pairs = rows * (rows + 1) // 2 if tiles.mask is MaskCase.CAUSAL else rows * tiles.key_length
    return tiles.count * len(tiles.query_heads) * tiles.group * pairs


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("ordering", "N"), product(ORDERINGS, SHORT + LONG))
def test_the_busiest_of_four_ranks_does_little_more_than_the_mean(
    ordering: str, N: int, weights: tuple[float, ...] | None
) -> None:
    layout = rs.Layout(N, RANKS, ordering, weights)
    assert busiest([plan.area for plan in plans(rs.Dense(), layout)], layout.sizes) <= LIMIT


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize(("ordering", "N"), product(ORDERINGS, LONG))
def test_nor_does_it_compute_much_more(
    ordering: str, N: int, weights: tuple[float, ...] | None
) -> None:
    layout = rs.Layout(N, RANKS, ordering, weights)
    ring = plans(rs.Dense(), layout)
    touched = [sum(computed(t) for step in plan.steps for t in step.tiles) for plan in ring]
    assert busiest(touched, layout.sizes) <= LIMIT


def test_explain_counts_the_same_work() -> None:
    layout = rs.Layout(65537, RANKS, "zigzag")
    report = rs.explain(rs.Inputs(N=65537, heads=8, head_dim=64), causal=True, layout=layout)
    assert busiest([rank.cost.flops for rank in report.ranks], layout.sizes) <= LIMIT
    assert report.layout_reason == "zigzag: busiest rank 1.00x the mean work"


@pytest.mark.parametrize("weights", [None, (1.0, 2.0, 3.0, 4.0, 5.0)])
@pytest.mark.parametrize(("N", "world_size"), product((7, 256, 257, 300), (2, 3, 4, 5)))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_zigzag_tiles_are_rectangles_and_triangles(
    pattern: rs.Dense | rs.Dilated, N: int, world_size: int, weights: tuple[float, ...] | None
) -> None:
    layout = rs.Layout(N, world_size, "zigzag", None if weights is None else weights[:world_size])
    for plan in plans(pattern, layout):
        assert plan.masks == {MaskCase.FULL, MaskCase.CAUSAL}
        assert {t.mask for step in plan.steps for t in step.tiles} <= plan.masks


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_two_zigzag_ranks_meet_in_one_rectangle(world_size: int) -> None:
    for plan in plans(rs.Dense(), rs.Layout(1001, world_size, "zigzag")):
        for step in plan.steps:
            if step.index:
                assert [(t.mask, t.count) for t in step.tiles] == [(MaskCase.FULL, 1)]


@pytest.mark.parametrize(("N", "world_size"), product((7, 256, 257, 300), (2, 3, 4, 5)))
@pytest.mark.parametrize("pattern", PATTERNS)
def test_even_stripes_are_triangles(
    pattern: rs.Dense | rs.Dilated, N: int, world_size: int
) -> None:
    for plan in plans(pattern, rs.Layout(N, world_size, "striped")):
        assert plan.masks == {MaskCase.FULL, MaskCase.CAUSAL}
        # A single row may be called full.
        for tiles in (t for step in plan.steps for t in step.tiles):
            assert tiles.mask is MaskCase.CAUSAL or tiles.query_length == 1


def test_uneven_stripes_are_staircases_cut_by_rows() -> None:
    for plan in plans(rs.Dense(), rs.Layout(4096, 2, "striped", (1.0, 2.0))):
        assert MaskCase.INTERVAL in plan.masks
        stairs = [t for step in plan.steps for t in step.tiles if t.mask is MaskCase.INTERVAL]
        assert len(stairs) > 4
        assert sum(map(computed, stairs)) <= 1.2 * sum(t.area for t in stairs)


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_sizes_give_the_shards_that_the_ordering_was_asked_for(ordering: str) -> None:
    sizes = (5, 0, 1001, 17)
    layout = rs.Layout(1023, 4, ordering, sizes=sizes)
    assert [len(layout.positions(rank)) for rank in range(4)] == list(sizes)
    for rank in range(4):
        assert (layout.positions(rank).diff() > 0).all()


def test_a_causal_dense_ring_is_zigzag_by_default() -> None:
    for N, world_size in product((16, 65, 1000, 65536), (2, 3, 4, 8)):
        layout = rs.parallel.choose_layout(N, world_size, causal=True)
        assert layout.ordering == "zigzag", (N, world_size)
    assert "1.00x the mean work instead of 1.87x" in layout.reason


def test_explain_says_why() -> None:
    layout = rs.parallel.choose_layout(4096, 4, causal=True)
    inputs = rs.Inputs(N=4096, heads=2, head_dim=8)
    report = rs.explain(inputs, causal=True, layout=layout)
    assert "layout zigzag: busiest rank 1.00x the mean work instead of 1.75x" in str(report)
    assert report.as_dict()["layout_reason"] == f"zigzag: {layout.reason}"


def test_speeds_are_kept_and_counted() -> None:
    weights = (1.0, 1.0, 1.0, 2.0)
    layout = rs.parallel.choose_layout(1000, 4, causal=True, weights=weights)
    assert (layout.ordering, layout.weights) == ("zigzag", weights)
    assert "instead of 1.60x" in layout.reason


@pytest.mark.parametrize(
    "pattern", [rs.Dense(window=(127, 0)), rs.Dilated((64, 256), (1, 4)), rs.Neighborhood(33)]
)
def test_neighbours_stay_together(pattern: rs.Dense | rs.Dilated | rs.Neighborhood) -> None:
    layout = rs.parallel.choose_layout(8192, 4, pattern=pattern, causal=True)
    assert layout.ordering is None
    assert "x the mean work" in layout.reason


def test_little_imbalance_is_not_worth_many_rows() -> None:
    # One long document on the first rank: zigzag would halve its work, and have it travel.
    pattern, documents = rs.Dense(), rs.Documents.from_lengths([256] + [16] * 48)
    layout = rs.parallel.choose_layout(1024, 4, pattern=pattern, causal=True, documents=documents)
    assert layout.ordering is None
    assert "zigzag would make it" in layout.reason


def test_long_segments_pay_for_their_rows() -> None:
    pattern = rs.Dilated([2048 << i for i in range(7)], (1, 2, 4, 8, 16, 16, 16))
    layout = rs.parallel.choose_layout(2**17, 8, pattern=pattern, causal=True, heads=16)
    assert layout.ordering == "zigzag"
