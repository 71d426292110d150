"""Layouts that are chosen for their balance, and what they say about it."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import ringspan as rs
from hypothesis import example, given
from hypothesis import strategies as st
from ringspan.contracts import MaskCase, Pattern, shard_sizes
from ringspan.contracts.pattern import Domain, Listed
from ringspan.engine.explanation import Explanation
from ringspan.errors import InvalidArgument
from ringspan.plan import balance
from ringspan.plan.balance import busiest, choose_layout
from ringspan.plan.cells import Cells
from ringspan.plan.holdings import Holdings
from ringspan.plan.lines import listed
from ringspan.plan.orders import order
from ringspan.plan.schedule import make_plan
from ringspan.plan.steps import Plan

PATTERNS = (
    rs.Dense(),
    rs.Dense(window=(5, 0)),
    rs.Dilated((8, 32), (1, 4)),
    rs.HeadGroups((8, 48), (1, 3)),
    rs.Neighborhood(9),
)
patterns = st.sampled_from(PATTERNS)
sizes = st.lists(st.integers(0, 40), min_size=1, max_size=5).map(tuple)


def plans(pattern: Pattern, layout: rs.Layout) -> list[Plan]:
    ranks = range(layout.world_size)
    return [make_plan(pattern, causal=True, kv_heads=4, layout=layout, rank=rank) for rank in ranks]


def load(pattern: Pattern, layout: rs.Layout) -> balance._Load:
    return balance._Load(pattern, Domain(layout.tokens, 4, 4, order, None, True))


@given(patterns, sizes)
def test_work_is_counted_as_plans_do(pattern: Pattern, sizes: tuple[int, ...]) -> None:
    layout = rs.Layout(sum(sizes), len(sizes), sizes=sizes)
    work = [plan.area for plan in plans(pattern, layout)]
    assert load(pattern, layout).busiest(layout) == pytest.approx(busiest(work, sizes))


@given(patterns, sizes)
def test_arriving_rows_are_counted_as_plans_do_or_once_for_each_part(
    pattern: Pattern, sizes: tuple[int, ...]
) -> None:
    layout = rs.Layout(sum(sizes), len(sizes), sizes=sizes)
    most = max(plan.rows_received for plan in plans(pattern, layout))
    branches = len(getattr(pattern, "segment_lengths", (0,)))
    assert most <= load(pattern, layout).most_received(layout) <= branches * most


def test_a_ring_that_is_even_or_alone_is_left_contiguous() -> None:
    assert choose_layout(64, 1, causal=True) == rs.Layout(64)
    assert choose_layout(64, 1, causal=True).reason == ""
    assert "without causality" in choose_layout(64, 4).reason
    local = choose_layout(1024, 4, pattern=rs.Dense(window=(7, 0)), causal=True)
    assert local == rs.Layout(1024, 4)
    assert local.reason == "busiest rank 1.00x the mean work"


def test_without_the_plugin_shards_are_contiguous_and_the_reason_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Catalogue:
        def names(self, kind: str) -> tuple[str, ...]:
            return ("identity",)

    monkeypatch.setattr(balance, "catalogue", Catalogue)
    layout = choose_layout(4096, 4, causal=True, weights=(1.0, 1.0, 1.0, 1.0))
    assert layout == rs.Layout(4096, 4, weights=(1.0, 1.0, 1.0, 1.0))
    assert layout.reason.startswith("busiest rank 1.75x the mean work; install ringspan-balanced")


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"N": -1, "world_size": 2}, "N"),
        ({"N": 8, "world_size": 0}, "world_size"),
        ({"N": 8, "world_size": 2, "weights": (1.0,)}, "weights"),
        ({"N": 8, "world_size": 2, "documents": rs.Documents.from_lengths([9])}, "documents"),
        ({"N": 8, "world_size": 2, "heads": 3, "kv_heads": 2}, "heads"),
        ({"N": 8, "world_size": 2, "heads": 0}, "heads"),
        ({"N": 8, "world_size": 2, "heads": 2, "kv_heads": 0}, "kv_heads"),
        ({"N": 8, "world_size": 2, "documents": [0, 8]}, "documents"),
        ({"N": 8, "world_size": 2, "pattern": "dense"}, "pattern"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(arguments: dict[str, object], name: str) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        choose_layout(**arguments, causal=True)  # type: ignore[arg-type]
    assert refusal.value.argument == name


def test_a_reason_is_kept_and_is_no_part_of_equality() -> None:
    layout = rs.Layout(12, 3, weights=(1.0, 1.0, 2.0), reason="because")
    plain = rs.Layout(12, 3, weights=(1.0, 1.0, 2.0))
    assert (layout, hash(layout), plain.reason) == (plain, hash(plain), "")
    for again in (pickle.loads(pickle.dumps(layout)), copy.copy(layout), copy.deepcopy(layout)):
        assert (again, again.reason) == (layout, "because")
    with pytest.raises(InvalidArgument, match="reason"):
        rs.Layout(12, 3, reason=1)  # type: ignore[arg-type]


def explained(layout: rs.Layout, **options: object) -> Explanation:
    inputs = rs.Inputs(N=layout.N, heads=2, head_dim=4)
    return rs.explain(inputs, layout=layout, **options)  # type: ignore[arg-type]


def test_explain_gives_the_reason_also_where_it_is_told_what_the_tokens_are() -> None:
    layout = rs.Layout(12, 3, reason="because")
    for options in ({}, {"tokens": rs.Grid(3, 4)}):
        report = explained(layout, **options)
        assert report.layout_reason == "contiguous: because"
        assert "\n  layout contiguous: because\n" in str(report)
        assert report.as_dict()["layout_reason"] == report.layout_reason


def test_explain_shows_an_uneven_causal_ring_and_names_the_remedy() -> None:
    said = explained(rs.Layout(4096, 4), causal=True).layout_reason
    assert said.startswith("contiguous: busiest rank 1.75x the mean work; zigzag evens that out")
    assert explained(rs.Layout(4096, 4)).layout_reason == (
        "contiguous: busiest rank 1.00x the mean work"
    )
    assert explained(rs.Layout(4096), causal=True).layout_reason == ""


def test_the_busiest_rank_is_seen_in_proportion_to_its_size() -> None:
    assert busiest([10, 30], [1, 3]) == 1.0
    assert busiest([10, 30], [2, 2]) == 1.5
    assert busiest([0, 30], [0, 2]) == 1.0
    assert busiest([0, 0], [0, 0]) == 1.0


@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=64))
@example([0, 0])
@example([2**40 - 1, 1, 0, 3])
def test_sizes_as_weights_give_the_sizes_again(sizes: list[int]) -> None:
    weights = None if not sum(sizes) else tuple(map(float, sizes))
    assert shard_sizes(sum(sizes), len(sizes), weights) == tuple(sizes)


@st.composite
def staircases(draw: st.DrawFn) -> Cells:
    """Sets in which each query sees a run of the keys, both ends monotone."""
    queries, keys, low, high = [], [], [], []
    for _ in range(draw(st.integers(1, 3))):
        rows, seen = draw(st.integers(0, 12)), draw(st.integers(0, 9))
        ends = st.lists(st.integers(0, seen), min_size=rows, max_size=rows).map(sorted)
        queries.append(rows)
        keys.append(seen)
        low += draw(ends)
        high += draw(ends)
    return Cells(
        Listed.of(np.arange(sum(queries)), np.array(queries)),
        Listed.of(np.arange(sum(keys)), np.array(keys)),
        np.array(low, np.int64),
        np.array(high, np.int64),
    )


@given(staircases(), st.none() | st.integers(1, 5), st.none() | st.integers(1, 4))
def test_tiles_however_cut_are_the_pairs_that_were_asked_for(
    cells: Cells, rows: int | None, alike: int | None
) -> None:
    expected = np.zeros((cells.query.size, cells.key.size), np.int64)
    before = np.repeat(cells.key.bounds[:-1], np.diff(cells.query.bounds))
    for query, first in enumerate(before):
        expected[query, first + cells.low[query] : first + cells.high[query]] = 1
    met = np.zeros_like(expected)
    for batch in cells.batches(rows, alike=alike):
        query, key = listed(batch.query), listed(batch.key)
        assert alike != 1 or batch.mask not in (MaskCase.BAND, MaskCase.INTERVAL)
        for tile, row in product(range(len(query)), range(query.shape[1])):
            if batch.mask is MaskCase.INTERVAL:
                seen = slice(batch.low[tile, row], batch.high[tile, row])
            elif batch.mask is MaskCase.BAND:
                assert (batch.left, batch.right) >= (0, key.shape[1] - query.shape[1])
                seen = slice(max(0, row - batch.left), row + batch.right + 1)
            else:
                seen = slice(row + 1 if batch.mask is MaskCase.CAUSAL else None)
            met[query[tile, row], key[tile, seen]] += 1
    assert (met == expected).all()


@given(staircases(), st.none() | st.integers(1, 5), st.none() | st.integers(1, 4))
def test_tiles_that_share_keys_say_so(cells: Cells, rows: int | None, alike: int | None) -> None:
    causal = replace(cells, low=np.zeros_like(cells.low))
    for batch in causal.batches(rows, alike=alike):
        key = listed(batch.key)
        assert batch.keys_overlap or len(np.unique(key)) == key.size


def test_holdings_know_runs_and_deals() -> None:
    def holdings(*positions: list[int]) -> Holdings:
        return Holdings(8, tuple(np.array(some, np.int64) for some in positions))

    contiguous, zigzag = holdings([0, 1, 2, 3], [4, 5, 6, 7]), holdings([0, 1, 6, 7], [2, 3, 4, 5])
    striped, other = holdings([0, 2, 4, 6], [1, 3, 5, 7]), holdings([0, 2, 4, 5], [1, 3, 6, 7])
    assert [some.few_runs for some in (contiguous, zigzag, striped, other)] == [1, 1, 0, 0]
    assert [some.dealt for some in (contiguous, zigzag, striped, other)] == [0, 0, 1, 0]
