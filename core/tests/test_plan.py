"""The plan of every rank, put together, is the pattern's multiplicity; nothing else travels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan import Dense, Dilated, Layout
from ringspan.contracts import Affine, Indexed, MaskCase, Tiles
from ringspan.plan.schedule import make_plan
from ringspan.plan.steps import Plan
from ringspan.testing.strategies import Configuration, configurations


def _rows(rows: Affine | Indexed, tiles: Tiles, length: int) -> np.ndarray:
    if isinstance(rows, Indexed):
        return rows.rows
    heads = len(tiles.query_heads)
    return (
        rows.start
        + np.arange(tiles.count)[:, None, None] * rows.tile_step
        + np.arange(heads)[:, None] * rows.head_step
        + np.arange(length) * rows.step
    )


def _visible(tiles: Tiles, tile: int, head: int, query: int) -> int:
    if tiles.mask is MaskCase.FULL:
        return tiles.key_length
    if tiles.mask is MaskCase.CAUSAL:
        assert tiles.query_length == tiles.key_length
        return query + 1
    if tiles.mask is MaskCase.BAND:
        assert tiles.left >= tiles.query_length - 1
        return min(query + tiles.right + 1, tiles.key_length)
    assert tiles.high is not None
    high = tiles.high.rows
    return int(high[tile, head % high.shape[1], query])


def _counted(plans: list[Plan], layout: Layout, kv_heads: int) -> torch.Tensor:
    """How often each query meets each key in the work of all ranks, `[kv_heads, N, N]`."""
    met = np.zeros((kv_heads, layout.N, layout.N), dtype=np.int64)
    for plan in plans:
        positions = layout.positions(plan.rank).numpy()
        for step in plan.steps:
            parcel = plans[step.source].steps[step.index].send
            assert plans[step.source].steps[step.index].target == plan.rank
            theirs = layout.positions(step.source).numpy()
            for tiles in step.tiles:
                query = _rows(tiles.query, tiles, tiles.query_length)
                key = _rows(tiles.key, tiles, tiles.key_length)
                for t in range(tiles.count):
                    for h, head in enumerate(tiles.query_heads):
                        if step.index:
                            assert tiles.key_heads[h] == 0
                            assert (parcel.heads.rows[key[t, h]] == head).all()
                            keys = theirs[parcel.rows.rows[key[t, h]]]
                        else:
                            assert tiles.key_heads[h] == head
                            keys = positions[key[t, h]]
                        for i in range(tiles.query_length):
                            seen = keys[: _visible(tiles, t, h, i)]
                            met[head, positions[query[t, h, i]], seen] += 1
    return torch.from_numpy(met)


def _pattern(configuration: Configuration) -> Dilated:
    return Dilated(
        configuration.segment_lengths,
        configuration.dilation_rates,
        head_offsets=configuration.head_offsets,
    )


@st.composite
def _layouts(draw: st.DrawFn, N: int) -> Layout:
    world_size = draw(st.integers(1, 4))
    cuts = sorted(
        draw(st.lists(st.integers(0, N), min_size=world_size - 1, max_size=world_size - 1))
    )
    sizes = tuple(b - a for a, b in zip((0, *cuts), (*cuts, N), strict=True))
    layout = Layout(N, world_size, sizes=sizes)
    if draw(st.booleans()):
        # Any storage order; naming one would need an ordering plugin.
        layout.ordering = "shuffled"
        layout.__dict__["order"] = np.random.RandomState(draw(st.integers(0, 99))).permutation(N)
    return layout


@given(st.data(), configurations(max_N=40))
def test_all_ranks_together_compute_the_multiplicity_and_no_more(
    data: st.DataObject, configuration: Configuration
) -> None:
    layout = data.draw(_layouts(configuration.N))
    plans = [
        make_plan(
            _pattern(configuration),
            causal=configuration.causal,
            kv_heads=configuration.kv_heads,
            layout=layout,
            rank=rank,
        )
        for rank in range(layout.world_size)
    ]
    group = configuration.heads // configuration.kv_heads
    expected = configuration.multiplicity()[::group]
    assert torch.equal(_counted(plans, layout, configuration.kv_heads), expected)


@given(st.data(), configurations(max_N=40))
def test_only_rows_that_some_query_sees_travel_and_each_once(
    data: st.DataObject, configuration: Configuration
) -> None:
    layout = data.draw(_layouts(configuration.N))
    group = configuration.heads // configuration.kv_heads
    seen = configuration.multiplicity()[::group] > 0
    for rank in range(layout.world_size):
        plan = make_plan(
            _pattern(configuration),
            causal=configuration.causal,
            kv_heads=configuration.kv_heads,
            layout=layout,
            rank=rank,
        )
        mine = layout.positions(rank)
        others = [p for r in range(layout.world_size) if r != rank for p in layout.positions(r)]
        needed = seen[:, mine][:, :, others].any(dim=1).sum() if len(mine) and others else 0
        assert plan.rows_received == int(needed)


def test_rates_that_divide_take_the_fewest_launches() -> None:
    pattern = Dilated((64, 128, 256, 512, 1024), (1, 2, 4, 8, 16))
    plan = make_plan(pattern, causal=False, kv_heads=16, layout=Layout(2048), rank=0)
    # min(r, H / r) per branch: 1 + 2 + 4 + 2 + 1
    assert len(plan.steps[0].work) == 10
    assert all(isinstance(tiles.query, Affine) for tiles in plan.steps[0].tiles)


def test_rows_that_descend_in_storage_are_gathered() -> None:
    layout = Layout(64)
    layout.ordering = "reversed"
    layout.__dict__["order"] = np.arange(64)[::-1].copy()
    plan = make_plan(Dilated((30,), (30,)), causal=False, kv_heads=2, layout=layout, rank=0)
    assert all(isinstance(tiles.query, Indexed) for tiles in plan.steps[0].tiles)


def test_branches_that_coincide_count_twice() -> None:
    # Both segments are longer than the sequence, so both branches are the same set.
    plan = make_plan(Dilated((8, 16), (1, 1)), causal=False, kv_heads=2, layout=Layout(5), rank=0)
    met = _counted([plan], Layout(5), 2)
    assert torch.equal(met, torch.full((2, 5, 5), 2))


def test_a_single_branch_needs_no_merging_and_several_do() -> None:
    one = make_plan(Dilated((4,), (1,)), causal=True, kv_heads=1, layout=Layout(8), rank=0)
    two = make_plan(Dilated((4, 8), (1, 2)), causal=True, kv_heads=1, layout=Layout(8), rank=0)
    assert one.one_piece
    assert not two.one_piece


def test_heads_without_an_offset_of_their_own_leave_rows_uncovered() -> None:
    plan = make_plan(Dilated((4,), (4,)), causal=False, kv_heads=2, layout=Layout(8), rank=0)
    assert not plan.forward_covered
    assert plan.area == 2 * 2


def test_planning_is_deterministic() -> None:
    arguments = {"causal": True, "kv_heads": 3, "layout": Layout(50, 3), "rank": 1}
    summaries = [
        [
            tiles.summary
            for step in make_plan(Dilated((7, 20), (2, 5)), **arguments).steps
            for tiles in step.tiles
        ]
        for _ in range(2)
    ]
    assert summaries[0] == summaries[1]


@pytest.mark.parametrize("causal", [False, True])
def test_dense_moves_what_the_formula_says(causal: bool) -> None:
    layout = Layout(64, 4)
    plans = [
        make_plan(Dense(), causal=causal, kv_heads=2, layout=layout, rank=rank) for rank in range(4)
    ]
    expected = [2 * (16 * rank if causal else 48) for rank in range(4)]
    assert [plan.rows_received for plan in plans] == expected
