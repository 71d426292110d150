"""The examples on real data run, and what they say is so."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from pathlib import Path

import pytest
import ringspan as rs
import torch
from ringspan.testing import multiplicity

from examples import bundled
from examples.blocks import active_blocks
from examples.coverage import (
    Rows,
    captured,
    captured_by_band,
    heads_that_show,
    places,
    sampled,
    shown,
)
from examples.image import dilated, neighborhood
from examples.image.features import features, patches
from examples.image.problem import Inputs, Problem, pass_over
from examples.image.similarity import BANDS, attention_map, bands
from examples.orderings import ORDERINGS
from examples.slide import locality, runs, tissue
from examples.slide.encoder import GIGAPATH_PATTERN, SlideEncoder, Width, position_embedding
from examples.slide.problem import Problem as SlideProblem
from examples.tables import Table
from examples.timing import medians

ROOT = Path(__file__).resolve().parents[1]
QUICK = Problem.quick(size=32)
SLIDE = dataclasses.replace(SlideProblem.quick(), size=32)
along_every_curve = pytest.mark.parametrize("ordering", ORDERINGS)
ROUNDING = 1e-6
"""Of embeddings in float32 after one layer, relative to their length."""


def printed(example: str, *arguments: str) -> dict[str, list[dict[str, str]]]:
    """The tables that an example prints, by their titles, row by row."""
    output = subprocess.run(
        [sys.executable, "-m", example, "--quick", *arguments],
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    found = {}
    for title, rows in re.findall(r"^(\S[^\n]*)\n\n((?:\|[^\n]*\n)+)", output, re.MULTILINE):
        header, _, *cells = (
            [cell.strip() for cell in line.strip("| ").split(" | ")] for line in rows.splitlines()
        )
        found[title] = [dict(zip(header, row, strict=True)) for row in cells]
    return found


def titled(tables: dict[str, list[dict[str, str]]], start: str) -> list[dict[str, str]]:
    """The one table whose title starts so."""
    (rows,) = (rows for title, rows in tables.items() if title.startswith(start))
    return rows


def test_the_image_example_runs_and_says_what_orderings_change(tmp_path: Path) -> None:
    found = printed("examples.image", "--out", str(tmp_path))
    costs = titled(found, "Dilated")
    assert [row["ordering"] for row in costs] == list(ORDERINGS)
    assert len({row["GFLOP"] for row in costs}) == 1
    (mass,) = titled(found, "The share of real attention maps")
    assert float(mass["hilbert"]) > float(mass["row-major"])
    (others,) = titled(found, "The same without the mass that queries give to themselves")
    assert float(mass["hilbert"]) > float(others["hilbert"]) > float(others["row-major"])
    active = {
        row["ordering"]: int(row["Neighborhood(13) over Grid(64, 64)"].split()[0])
        for row in titled(found, "Active pairs")
    }
    assert active["hilbert"] < active["row-major"]
    differences = [float(row["difference"]) for row in titled(found, "Neighborhood(13) over")]
    assert len(differences) == 1 + len(ORDERINGS)
    assert max(differences) < 1e-4
    assert (tmp_path / "coverage.png").stat().st_size > 10_000


def test_the_slide_example_runs_and_says_what_orderings_change() -> None:
    found = printed("examples.slide", "--layers", "1", "--embed-dim", "64")
    gigapath, geometric = titled(found, "The share of a local attention mass")
    assert float(geometric["hilbert"]) > float(geometric["row-major"]) + 10
    # Its segments are as long as the slide: there is little to gain.
    assert abs(float(gigapath["hilbert"]) - float(gigapath["row-major"])) < 10
    rows = titled(found, "The encoder with the pattern 'geometric'")
    by_way = {row["tiles are"]: float(row["relative difference"]) for row in rows}
    assert by_way[runs.STORED] < ROUNDING
    assert by_way[runs.FED_HILBERT] > 1e-3


@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee", "ihc"])
def test_photographs_are_read_from_the_installed_package(name: str) -> None:
    photo = bundled.photograph(name)
    assert photo.shape[0] == 3
    assert photo.dtype == torch.float64
    assert 0 <= photo.min() < 0.2 < 0.8 < photo.max() <= 1


def test_an_unknown_picture_and_a_missing_package_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(FileNotFoundError, match="'nobody'"):
        bundled.photograph("nobody")
    monkeypatch.setattr(bundled, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-image"):
        bundled.photograph("astronaut")


@along_every_curve
def test_a_keys_share_of_heads_is_that_of_the_definition(ordering: str) -> None:
    grid = rs.Grid(9, 7)
    place, queries = places(grid, ordering), sampled(grid.N, 20)
    for pattern in (
        rs.Dilated((8, 20, 63), (1, 2, 4)),
        rs.Dilated((8, 20, 63), (1, 2, 4), head_offsets="blocked"),
    ):
        m = multiplicity.dilated(
            grid.N, 6, 6, (8, 20, 63), (1, 2, 4), str(pattern.head_offsets), places=place
        )
        for head in range(6):
            assert torch.equal(shown(pattern, place, queries, head, 6), m[head, queries] > 0)
        share = heads_that_show(pattern, place, queries, 6)
        assert torch.allclose(share, (m[:, queries] > 0).float().mean(0))


def test_captured_mass_is_a_mean_over_heads_and_parts_by_band() -> None:
    mass = torch.tensor([[0.5, 0.25, 0.25, 0.0]], dtype=torch.float64)
    rows = Rows(torch.tensor([0]), mass)
    share = torch.tensor([[1.0, 0.5, 0.0, 1.0]])
    assert captured(rows, share) == pytest.approx(0.625)
    assert captured(rows.of_others(), share) == pytest.approx(0.25)
    by_band = captured_by_band(rows, share, torch.tensor([[0, 1, 1, 1]]), 2)
    assert by_band.tolist() == pytest.approx([1.0, 0.25])


@along_every_curve
def test_rows_that_were_arranged_come_back(ordering: str) -> None:
    layout = rs.Layout(QUICK.grid, ordering=ordering)
    q = Inputs.of(QUICK).q
    place = places(QUICK.grid, ordering)
    assert torch.equal(layout.restore(layout.arrange(q)), q)
    assert torch.equal(layout.arrange(q)[:, place], q)


@along_every_curve
def test_every_ordering_costs_the_same_operations(ordering: str) -> None:
    assert dilated.operations(QUICK, ordering) == dilated.operations(QUICK, "row-major") > 0


@along_every_curve
def test_a_plain_pattern_on_renumbered_tokens_is_the_pattern_along_the_curve(ordering: str) -> None:
    layout, inputs = rs.Layout(QUICK.grid, ordering=ordering), Inputs.of(QUICK)
    along = pass_over(inputs, pattern=QUICK.dilated(ordering), tokens=QUICK.grid)()
    renumbered = pass_over(inputs.arranged(layout), pattern=QUICK.dilated())()
    assert torch.allclose(layout.restore(renumbered), along, atol=1e-5)


def test_an_attention_map_is_made_of_looks_alone() -> None:
    found = features(patches(bundled.photograph("coffee"), 16))
    queries = sampled(256, 40)
    rows = attention_map(found, queries, 20.0)
    assert torch.allclose(found.norm(dim=1), torch.ones(256, dtype=torch.float64))
    assert torch.allclose(rows.mass.sum(-1), torch.ones(40, dtype=torch.float64))
    assert torch.equal(rows.mass.argmax(-1), queries)
    shuffled = torch.randperm(256)
    again = attention_map(found[shuffled], shuffled.argsort()[queries], 20.0)
    assert torch.allclose(again.mass, rows.mass[:, shuffled])


def test_bands_part_keys_by_their_distance() -> None:
    grid = rs.Grid(40, 40)
    (band,) = bands(grid, torch.tensor([20 * 40 + 20])).reshape(1, 40, 40)
    assert band[20, 20:35].tolist() == [0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 4, 4]
    assert torch.equal(band, band.T)
    assert int(band.max()) + 1 == len(BANDS)


def test_hilbert_sees_more_of_a_real_map_nearby_and_no_more_far_away() -> None:
    shares = dilated.mass_captured_by_band(Problem.quick())
    near, far = BANDS.index("1-2"), BANDS.index("further")
    assert shares["hilbert"][near] > 1.3 * shares["row-major"][near]
    assert shares["hilbert"][far] < 1.1 * shares["row-major"][far]


def test_neighbourhoods_under_every_storage_order_are_exact_and_take_fewer_blocks() -> None:
    # Each output is held to the rule for exactness inside.
    found = neighborhood.stored(QUICK)
    assert [each.ordering for each in found] == [neighborhood.NO_LAYOUT, *ORDERINGS]
    assert all(each.difference < 1e-4 for each in found)


def test_a_wrong_neighbourhood_is_not_taken_for_exact() -> None:
    inputs = Inputs.of(QUICK).heads(neighborhood.HEADS)
    wrong = pass_over(inputs, pattern=rs.Neighborhood(11), tokens=QUICK.grid)()
    with pytest.raises(AssertionError, match="not exact"):
        neighborhood.check(QUICK, inputs, {"wrong": wrong})


def test_active_blocks_of_a_known_grid() -> None:
    counts = active_blocks(rs.Neighborhood(13), rs.Grid(128, 128))
    assert [counts[name] for name in ("row-major", "snake")] == [6488] * 2
    assert [counts[name] for name in ("tiles", "morton", "hilbert")] == [2116] * 3


def test_tissue_has_gaps_and_an_irregular_border() -> None:
    mask = tissue.mask_of(64)
    filled = mask.any(1).sum() * mask.any(0).sum()
    assert 0.3 * filled < mask.sum() < 0.7 * filled
    assert len(set(mask.sum(1).tolist())) > 20
    slide = tissue.slide(64)
    assert slide.points.N == int(mask.sum()) == slide.x.shape[1]
    assert mask.numpy()[tuple(slide.points.coordinates.T)].all()


def test_tiles_fed_along_a_curve_are_the_same_tiles() -> None:
    slide = tissue.slide(32)
    fed, layout = slide.fed("hilbert")
    assert torch.equal(layout.restore(fed.x), slide.x)
    back = layout.restore(torch.from_numpy(fed.points.coordinates.copy()), dim=0)
    assert back.tolist() == slide.points.coordinates.tolist()


def test_a_slides_local_mass_is_near() -> None:
    points = rs.Coordinates([[0, 0], [0, 1], [9, 9]])
    rows = locality.local_mass(points, torch.tensor([0]), 2.0)
    near = torch.exp(torch.tensor(-1 / 8, dtype=torch.float64))
    assert rows.mass[0, 1] / rows.mass[0, 0] == pytest.approx(float(near))
    assert rows.mass[0, 2] < 1e-8


def test_hilbert_sees_more_of_a_slides_local_mass_where_segments_are_short() -> None:
    shares = locality.mass_captured(SLIDE, tissue.slide(64).points)
    assert shares["geometric"]["hilbert"] > shares["geometric"]["row-major"] + 0.1
    assert shares["GigaPath"]["row-major"] > 0.9


def test_positions_embed_by_both_axes() -> None:
    embedded = position_embedding(rs.Coordinates([[0, 0], [0, 5], [5, 0]]), 16)
    assert embedded.shape == (3, 16)
    rows, columns = embedded.split(8, dim=1)
    assert torch.equal(rows[0], rows[1])
    assert torch.equal(columns[0], columns[2])
    assert torch.equal(rows[2], columns[1])
    assert not torch.equal(rows[0], rows[2])


def test_an_encoder_has_gigapaths_configuration_by_default() -> None:
    encoder = SlideEncoder(GIGAPATH_PATTERN, Width(layers=1))
    assert Width() == Width(layers=12, embed_dim=768, heads=16)
    assert encoder.project.weight.shape == (768, 1536)
    assert encoder.blocks[0].attention.pattern.segment_lengths[-1] == 2**20


@pytest.mark.parametrize("name", ["GigaPath", "geometric"])
def test_storage_changes_no_embedding_and_the_order_of_tiles_does(name: str) -> None:
    slide, pattern = tissue.slide(64), SLIDE.patterns()[name]
    found = {run.way: run.difference for run in runs.pattern_runs(SLIDE, pattern, slide)}
    assert found[runs.STORED] < ROUNDING
    assert found[runs.FED_HILBERT] > 1e-3
    if name == "geometric":
        assert found[runs.ALONG] == pytest.approx(found[runs.FED_HILBERT], rel=1e-4)


def test_slides_packed_as_documents_are_as_if_alone() -> None:
    slides = tissue.halves(32)
    found = runs.packed_apart(SLIDE, SLIDE.patterns()["geometric"], slides)
    assert [each.tiles for each in found] == [slide.points.N for slide in slides]
    assert all(each.difference < ROUNDING for each in found)


def test_neighbourhoods_of_tiles_do_not_mind_storage() -> None:
    found = runs.neighborhood_runs(SLIDE, tissue.slide(32))
    assert all(run.difference < ROUNDING for run in found)


def test_medians_call_each_function_once_more_than_there_are_rounds() -> None:
    calls: list[str] = []
    found = medians({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=3)
    assert sorted(calls) == ["a"] * 4 + ["b"] * 4
    assert "".join(calls) == "ab" + "ab" + "ba" + "ab"
    assert all(seconds >= 0 for seconds in found.values())


def test_a_table_is_data_and_markdown() -> None:
    table = Table("Title", ("a", "long"), (("1", "2"),))
    title, header, rows = table
    assert (title, header, rows) == ("Title", ("a", "long"), (("1", "2"),))
    assert str(table).splitlines() == [
        "Title",
        "",
        "| a | long |",
        "| - | ---- |",
        "| 1 | 2    |",
    ]
