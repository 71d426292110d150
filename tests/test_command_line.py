"""The installed `ringspan` command, with every plugin."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ringspan as rs

if TYPE_CHECKING:
    from pathlib import Path

PROBLEM = ["--n", "16384", "--segments", "2048,16384", "--rates", "1,8", "--causal"]
FIRST_PARTY = {
    "manual", "sdpa", "identity", "hilbert", "balanced", "isend", "nccl", "host",
}  # fmt: skip


def ringspan(*arguments: str) -> str:
    process = subprocess.run(
        ["ringspan", *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


def as_json(*arguments: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(ringspan(*arguments, "--json"))
    return content


def test_doctor_finds_every_first_party_plugin_loaded() -> None:
    plugins = {plugin["name"]: plugin for plugin in as_json("doctor")["plugins"]}
    assert plugins.keys() >= FIRST_PARTY
    for name in FIRST_PARTY:
        assert plugins[name]["state"] == "loaded"
        assert plugins[name]["providers"]


def test_doctor_gives_a_reason_for_every_provider_that_is_not_usable() -> None:
    for plugin in as_json("doctor")["plugins"]:
        for provider in plugin["providers"]:
            for found in provider["devices"]:
                assert found["usable"] or found["reason"]


def test_version_names_each_plugin_and_what_it_offers() -> None:
    shown = ringspan("--version")
    for word in ("ringspan 0.", "  manual 0.", "ordering hilbert", "communicator isend"):
        assert word in shown


def test_explain_names_the_chosen_backend_and_why_not_the_others() -> None:
    decisions = as_json("explain", *PROBLEM)["decisions"]
    backend = decisions["backend (causal)"]
    states = {candidate["name"]: candidate for candidate in backend["candidates"]}
    assert states[backend["chosen"]]["state"] == "chosen"
    assert all(
        candidate["reasons"] for name, candidate in states.items() if name != backend["chosen"]
    )


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_explain_gives_every_reason_once(device: str) -> None:
    process = subprocess.run(
        ["ringspan", "explain", *PROBLEM, "--device", device],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "supported:" in process.stdout
    for line in process.stdout.splitlines():
        reasons = line.split(": ", 2)[-1].split("; ")
        assert len(reasons) == len(set(reasons))
        assert line.count("device ") <= 1


def test_explain_says_the_same_to_people() -> None:
    shown = ringspan("explain", *PROBLEM, "--world-size", "4", "--backend", "manual")
    for word in ("GFLOP", "tiles", "rank 3", "receives", "MiB", "manual: chosen", "isend: chosen"):
        assert word in shown


def test_explain_chooses_a_layout_and_says_why() -> None:
    causal = ("explain", "--n", "1000", "--dense", "--causal", "--ranks", "4")
    content = as_json(*causal, "--weights", "1,1,1,2")
    assert [rank["rows"] for rank in content["ranks"]] == [200, 200, 200, 400]
    assert content["layout_reason"].startswith("zigzag: busiest rank 1.0")
    given = as_json(*causal, "--ordering", "striped")
    assert given["layout_reason"].startswith("striped: busiest rank 1.0")


def test_explain_takes_a_pattern_along_a_curve_stored_along_another() -> None:
    content = as_json(
        "explain", "--grid", "32x32", "--segments", "64,1024", "--rates", "1,8",
        "--along", "hilbert", "--ordering", "morton", "--world-size", "3",
    )  # fmt: skip
    assert sum(rank["rows"] for rank in content["ranks"]) == 1024


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "--n", "100", "--dense", "--ordering", "hilbert"],
        ["explain", "--n", "128", "--segments", "16", "--along", "hilbert"],
        ["plot", "blocks", "--n", "128", "--pattern", "Dense()", "--orderings", "hilbert"],
    ],
)
def test_an_ordering_without_coordinates_is_refused_with_the_options_that_give_them(
    arguments: list[str], tmp_path: Path
) -> None:
    process = subprocess.run(
        ["ringspan", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
    )
    assert process.returncode == 2
    assert "Give --grid or --points" in process.stderr
    assert "Along(" not in process.stderr


def test_explain_counts_active_blocks_of_points_in_the_order_that_is_given(
    tmp_path: Path,
) -> None:
    rows, columns = np.indices((24, 16)).reshape(2, -1)
    points = np.stack([rows, columns], axis=1)[(rows + columns) % 5 > 0]
    np.save(tmp_path / "points.npy", points)
    arguments = ["--points", str(tmp_path / "points.npy"), "--pattern", "Neighborhood(3)"]
    arguments += ["--ordering", "row-major"]
    for options, along in (
        ([], rs.Along("row-major")),
        (["--axes", "1,0"], rs.Along("row-major", axes=(1, 0))),
        (["--axes", "1,0", "--chunk", "40"], rs.Along("row-major", axes=(1, 0), chunk=40)),
    ):
        found = as_json("explain", *arguments, *options, "--block-size", "16")["active_blocks"]
        layout = rs.Layout(rs.Coordinates(points), ordering=along, block_size=16)
        numbers = layout.block_numbers(16)
        near = np.abs(points[:, None] - points).max(axis=2) <= 1
        query, key = np.nonzero(near)
        pairs = {*zip(numbers[query], numbers[key], strict=True)}
        assert found["block_size"] == 16
        assert found["counts"]["row-major" if along.plain else "as stored"] == len(pairs)


def test_explain_keeps_the_layout_of_its_choice_whatever_the_block_size() -> None:
    causal = ("--n", "1000", "--dense", "--causal", "--ranks", "4")
    wide, narrow = (as_json("explain", *causal, *option) for option in ((), ("--block-size", "16")))
    assert wide["layout_reason"] == narrow["layout_reason"] != ""
    assert wide["ranks"] == narrow["ranks"]


@pytest.mark.parametrize("ordering", ["hilbert", "gilbert", "morton", "snake", "tiles"])
def test_plot_draws_an_ordering(tmp_path: Path, ordering: str) -> None:
    out = tmp_path / "ordering.svg"
    ringspan("plot", "ordering", ordering, "--grid", "8x8", "--out", str(out))
    assert out.read_text().startswith("<?xml")


def test_plot_draws_a_cube(tmp_path: Path) -> None:
    out = tmp_path / "ordering.png"
    ringspan("plot", "ordering", "hilbert", "--grid", "4x4x4", "--out", str(out))
    assert out.read_bytes().startswith(b"\x89PNG")
