"""`ringspan plot`: what it reads, what it draws, and what it refuses by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ringspan.cli.app import app
from ringspan.cli.problem import placed_from, points_from
from ringspan.contracts import Grid
from ringspan.errors import InvalidArgument
from typer.testing import CliRunner, Result

MASK = np.indices((6, 9)).sum(axis=0) % 3 > 0


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plot", *arguments])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files of points, good and bad, which is the working one."""
    monkeypatch.chdir(tmp_path)
    np.save("mask.npy", MASK)
    np.save("points.npy", np.argwhere(MASK))
    np.savetxt("points.csv", np.argwhere(MASK), fmt="%d", delimiter=",")
    np.save("halves.npy", np.argwhere(MASK) / 2)
    np.save("objects.npy", np.array([{}]), allow_pickle=True)
    (tmp_path / "words.csv").write_text("row,column\n1,2\n")
    (tmp_path / "empty.npy").touch()
    (tmp_path / "words.png").write_text("no picture")
    return tmp_path


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("name", ["mask.npy", "points.npy", "points.csv"])
def test_points_come_from_a_mask_or_from_rows_of_integers(name: str) -> None:
    assert points_from(Path(name)).coordinates.tolist() == np.argwhere(MASK).tolist()


def test_a_grid_is_taken_by_default_only_where_there_is_one() -> None:
    assert placed_from(None, None, "4x5") == Grid(4, 5)
    assert placed_from("6x7", None, "4x5") == Grid(6, 7)
    with pytest.raises(InvalidArgument, match="--grid: expected a grid, or --points"):
        placed_from(None, None)


@pytest.mark.parametrize(
    "arguments",
    [
        ["pattern", "--points", "mask.npy", "--pattern", "Neighborhood(3)"],
        ["blocks", "--n", "300", "--pattern", "Dense(window=(5, 5))", "--causal"],
        ["blocks", "--points", "mask.npy", "--pattern", "Neighborhood(3)", "--block-size", "4"],
        ["coverage", "--grid", "6x8", "--pattern", "Neighborhood(3)", "--query", "2,3"],
        ["coverage", "--grid", "6x8", "--pattern", "Dilated((8,), (2,))", "--query", "2,3",
         "--heads", "2", "--head", "1"],
        ["coverage", "--points", "points.csv", "--pattern", "Dense()", "--query", "0,1",
         "--causal", "--image", "drawn.png"],
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_a_picture_is_written(folder: Path, arguments: list[str], suffix: str) -> None:
    image = pytest.importorskip("matplotlib.image")
    image.imsave("drawn.png", np.zeros((6, 9, 3)))
    result = run(*arguments, "--out", f"out.{suffix}")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"Wrote out.{suffix}\n"
    start = {"png": b"\x89PNG", "svg": b"<?xml"}[suffix]
    assert (folder / f"out.{suffix}").read_bytes().startswith(start)


COVERAGE = ["coverage", "--pattern", "Dense()", "--query", "0,1"]
BLOCKS = ["blocks", "--n", "16", "--pattern", "Dense()"]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["ordering", "identity", "--out", "x.gif"], "out: expected"),
        (["ordering", "identity", "--axes", "1;0"], "--axes: expected integers"),
        (["ordering", "identity", "--axes", "0,0"], "axes: expected"),
        (["ordering", "identity", "--axes", "2,1,0"], "axes: expected None or 2 axes"),
        (["ordering", "identity", "--chunk", "0"], "chunk: expected an integer"),
        (["ordering", "identity", "--points", "gone.npy"], "--points: expected a file"),
        (["ordering", "identity", "--points", "points.txt"], "--points: expected a .npy or .csv"),
        (["ordering", "identity", "--points", "words.csv"], "--points: expected a .npy or .csv"),
        (["ordering", "identity", "--points", "words.csv"], "and no header line"),
        (["ordering", "identity", "--points", "objects.npy"], "--points: expected a .npy or .csv"),
        (["ordering", "identity", "--points", "empty.npy"], "--points: expected a .npy or .csv"),
        (["ordering", "identity", "--points", "halves.npy"], "Coordinates: expected integers"),
        (["ordering", "identity", "--points", "mask.npy", "--grid", "3x3"], "no --grid beside it"),
        ([*BLOCKS, "--out", "x.gif"], "out: expected"),
        ([*BLOCKS, "--points", "mask.npy"], "--points: expected no --n"),
        ([*BLOCKS, "--block-size", "0"], "block_size: expected an integer >= 1, got 0"),
        ([*BLOCKS, "--heads", "0"], "heads: expected an integer >= 1, got 0"),
        ([*BLOCKS, "--orderings", "a,,b"], "--orderings: expected different names"),
        ([*BLOCKS, "--orderings", "a,a"], "--orderings: expected different names"),
        ([*BLOCKS, "--orderings", "nobody"], "ordering: expected"),
        (["blocks", "--n", "16"], "--pattern: expected a pattern"),
        (["pattern", "--points", "mask.npy", "--n", "3"], "--points: expected no --n"),
        (["blocks", "--pattern", "Dense()"], "--n: expected"),
        (["blocks", "--n", "40000", "--pattern", "Dense()", "--block-size", "1"],
         "block_size: expected at most 32,768 blocks"),
        (COVERAGE, "--grid: expected a grid, or --points"),
        ([*COVERAGE, "--grid", "4x4", "--out", "x.gif"], "out: expected"),
        ([*COVERAGE, "--grid", "4x4", "--head", "1"], "--head: expected all or 0 .. 0"),
        ([*COVERAGE, "--grid", "4x4", "--head", "-1"], "--head: expected all or 0 .. 0"),
        ([*COVERAGE, "--grid", "4x4x4"], "query: expected 3 coordinates"),
        ([*COVERAGE, "--points", "mask.npy", "--query", "0,0"], "query: expected a point of"),
        ([*COVERAGE, "--grid", "4x4", "--query", "a,b"], "--query: expected integers"),
        ([*COVERAGE, "--grid", "4x4", "--image", "gone.png"], "--image: expected a file"),
        ([*COVERAGE, "--grid", "4x4", "--image", "words.png"], "--image: expected a"),
        (["coverage", "--grid", "4x4", "--query", "0,1"], "--pattern: expected a pattern"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_in_one_line_and_nothing_is_written(
    folder: Path, arguments: list[str], word: str
) -> None:
    pytest.importorskip("matplotlib")
    before = sorted(folder.iterdir())
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert word in result.stderr
    assert result.stderr.count("\n") == 1
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("command", ["ordering", "blocks", "coverage"])
def test_every_picture_has_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.stdout


@pytest.mark.parametrize("command", ["pattern", "ordering", "blocks", "coverage"])
def test_help_keeps_every_word_about_points(command: str) -> None:
    words = " ".join(run(command, "--help").stdout.replace("│", " ").split())
    for said in ("N x 2 or N x 3", "without a header line", "h x w or d x h x w"):
        assert said in words
