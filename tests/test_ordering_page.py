"""The guide "When does ordering help?" shows what was measured, and its counts are true."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import ringspan as rs
import torch
from ringspan.plan.orders import order
from ringspan.testing import multiplicity

from benchmarks import ordering_blocks, ordering_mass, ordering_page, ordering_ring
from benchmarks.ordering import RESULTS, measured
from benchmarks.ordering_page import PAGE, rendered
from benchmarks.ordering_tables import Table, Target, markdown


@pytest.fixture(scope="module")
def record() -> dict[str, Any]:
    """What was measured last."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


@pytest.fixture(scope="module")
def tables(record: dict[str, Any]) -> dict[str, Table]:
    return {table["name"]: Table.of(**table) for table in record["tables"]}


@pytest.fixture(scope="module")
def fresh() -> dict[str, Any]:
    """A little of it, counted now."""
    return measured(quick=True)


def test_the_page_is_what_its_template_and_the_results_make(record: dict[str, Any]) -> None:
    assert PAGE.read_text() == rendered(record), "run `python -m benchmarks.ordering --page`"


def test_counts_that_should_be_reached_are(record: dict[str, Any]) -> None:
    wanted = [Target(**target) for target in record["targets"]]
    counted = [target for target in wanted if target.kind == "count"]
    assert {target.kind for target in wanted} == {"count", "time"}
    assert len(counted) >= 8
    assert [target.row for target in counted if not target.met] == []


@pytest.mark.parametrize("name", ["captured", "offsets", "blocks", "balance", "rows"])
def test_what_is_counted_now_is_what_the_page_says(
    name: str, tables: dict[str, Table], fresh: dict[str, Any]
) -> None:
    (now,) = [Table.of(**table) for table in fresh["tables"] if table["name"] == name]
    before = {row[0]: row[1:] for row in tables[name].rows}
    assert now.header == tables[name].header
    assert now.rows
    for first, *rest in now.rows:
        assert rest == pytest.approx(before[first], abs=1e-12)


def test_a_target_that_is_missed_says_so() -> None:
    assert Target("share", "count", 0.7, 0.73, at_least=True).row[-1] == "missed"
    assert Target("share", "count", 0.73, 0.73, at_least=True).row[-1] == "met"
    assert Target("time", "time", 0.61, 0.6).row[-1] == "missed"


@pytest.mark.parametrize("along", [None, "hilbert", "tiles"])
@pytest.mark.parametrize("offsets", ["modulo", "blocked"])
def test_captured_mass_is_that_of_the_pattern_as_it_is_defined(
    along: str | None, offsets: str
) -> None:
    grid, sigma = rs.Grid(12, 20), 1.5
    pattern = ordering_mass.pattern(along, grid.N, offsets)
    places = torch.arange(grid.N)
    if along is not None:
        places[torch.from_numpy(order(along, grid).copy())] = torch.arange(grid.N)
    heads = ordering_mass.HEADS
    branches = pattern.segment_lengths, pattern.dilation_rates
    m = multiplicity.dilated(grid.N, heads, heads, *branches, offsets, places=places)
    points = torch.tensor(grid.coordinates, dtype=torch.float64)
    distance = torch.cdist(points, points)
    mass = torch.exp(-(distance**2) / (2 * sigma**2)) * (distance <= 5 * sigma)
    kept = (mass * (m > 0)).sum(-1) / mass.sum(-1)
    found = ordering_mass.captured(pattern, grid, (sigma,))
    assert found[sigma] == pytest.approx(kept.mean().item(), abs=1e-12)


def test_active_blocks_are_those_in_which_a_query_sees_a_key() -> None:
    grid, pattern = rs.Grid(24, 40), rs.Neighborhood(7)
    (m,) = multiplicity.neighborhood(torch.tensor(grid.coordinates), 7)
    for name, count in ordering_blocks.counts(grid, pattern).items():
        if name == ordering_blocks.OWN:
            continue
        number = np.empty(grid.N, np.int64)
        number[order(name, grid)] = np.arange(grid.N) // ordering_blocks.BLOCK
        query, key = m.numpy().nonzero()
        assert count == len({*zip(number[query].tolist(), number[key].tolist(), strict=True)})


def test_explain_counts_the_same_blocks(tables: dict[str, Table]) -> None:
    name = ordering_blocks.QUICK
    grid, pattern = ordering_blocks.CASES[name]
    inputs = rs.Inputs(N=grid.N, heads=1, head_dim=32)
    report = rs.explain(inputs, pattern=pattern, layout=rs.Layout(grid, ordering="hilbert"))
    base = tables["blocks"].cell(name, "row-major, pairs")
    assert report.active_blocks is not None
    assert report.active_blocks.counts["row-major"] == base
    assert report.active_blocks.counts["hilbert"] == tables["blocks"].cell(name, "hilbert") * base


def test_rows_that_travel_are_those_that_some_query_sees() -> None:
    layout = rs.Layout(rs.Grid(32, 32), 4, "hilbert")
    (m,) = multiplicity.neighborhood(torch.tensor(layout.tokens.coordinates), 13)
    for rank, received in enumerate(ordering_ring.rows_received(layout)):
        held = layout.positions(rank)
        seen = m[held].any(0)
        seen[held] = False
        assert received == int(seen.sum())


def test_the_example_of_images_gives_the_tables_that_the_page_shows(
    tables: dict[str, Table],
) -> None:
    found = {table.name: table for table in ordering_mass.photographs(quick=True)}
    assert list(found) == ["photographs", "photographs, others", "distances"]
    assert {name: table.header for name, table in found.items()} == {
        name: tables[name].header for name in found
    }


def test_a_template_that_asks_for_what_was_not_measured_is_an_error(
    record: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tmp_path / "page.md"
    monkeypatch.setattr(ordering_page, "TEMPLATE", template)
    template.write_text("{{ cell blocks | 128 x 128, window 13, clip | row-major, pairs }} pairs")
    assert rendered(record) == "6,488 pairs"
    for asked in ("{{ table guesses }}", "{{ fact mood }}"):
        template.write_text(asked)
        with pytest.raises(KeyError):
            rendered(record)


def test_numbers_are_shown_alike() -> None:
    shown = markdown(("a", "b"), [("x", 65536), (0.5, 2e-7), (0.0, None)])
    assert shown.splitlines()[2:] == ["| x | 65,536 |", "| 0.500 | 2.0e-07 |", "| 0.000 |  |"]
