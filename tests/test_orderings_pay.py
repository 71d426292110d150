"""What orderings save where tokens have coordinates, in active blocks: counts, not seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import ringspan as rs
from ringspan import Grid, Neighborhood, pictures
from ringspan.cli.app import app
from ringspan.plan.activity import Seen
from ringspan.plan.orders import order
from typer.testing import CliRunner

BLOCK = 64


def active(seen: Seen, ordering: str, tokens: Grid) -> int:
    numbers = np.empty(tokens.N, np.int64)
    numbers[order(ordering, tokens)] = np.arange(tokens.N) // BLOCK
    return seen.active(numbers, -(-tokens.N // BLOCK))


@pytest.mark.parametrize(("window", "by_rows", "by_squares"), [(13, 6488, 2116), (25, 12176, 5476)])
def test_squares_of_tokens_see_a_third_to_a_half_of_the_blocks_that_rows_see(
    window: int, by_rows: int, by_squares: int
) -> None:
    # On 128 x 128, a block of 64 is half a row, or 8 x 8 along all of these curves.
    tokens = Grid(128, 128)
    seen = Seen.of(Neighborhood(window), tokens)
    assert {name: active(seen, name, tokens) for name in ("identity", "row-major", "snake")} == {
        "identity": by_rows,
        "row-major": by_rows,
        "snake": by_rows,
    }
    squares = ("tiles", "morton", "hilbert", "gilbert")
    assert {name: active(seen, name, tokens) for name in squares} == {
        "tiles": by_squares,
        "morton": by_squares,
        "hilbert": by_squares,
        "gilbert": by_squares,
    }


def test_the_picture_of_blocks_counts_as_the_plan_does() -> None:
    tokens, names = Grid(40, 64), ("row-major", "snake", "tiles", "morton", "hilbert")
    seen = Seen.of(Neighborhood(7), tokens, causal=True)
    found = pictures.active_blocks(Neighborhood(7), tokens, orderings=names, causal=True)
    assert {one.ordering: one.count for one in found} == {
        name: active(seen, name, tokens) for name in names
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ["ordering", "hilbert", "--grid", "40x64", "--axes", "1,0", "--chunk", "512"],
        ["ordering", "morton", "--points", "disc.npy"],
        ["ordering", "hilbert", "--grid", "4x6x8"],
        ["blocks", "--grid", "32x32", "--pattern", "Neighborhood(5)"],
        ["coverage", "--points", "disc.npy", "--query", "12,12", "--pattern",
         "Dilated((64, 256), (1, 2), along='hilbert')", "--orderings", "row-major,hilbert"],
    ],
)  # fmt: skip
def test_plot_draws_orderings_and_what_they_do(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("disc.npy", np.hypot(*(np.indices((24, 24)) - 12)) < 11)
    result = CliRunner().invoke(app, ["plot", *arguments, "--out", "out.png"])
    assert result.exit_code == 0, result.stderr
    assert Path("out.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("name", ["hilbert", "gilbert", "morton", "tiles"])
def test_a_pattern_along_the_curve_of_storage_gathers_nothing(name: str, world_size: int) -> None:
    tokens = Grid(64, 64)
    pattern = rs.Dilated((64, 256, 1024), (1, 2, 4), along=name)
    inputs = rs.Inputs(N=tokens.N, heads=8, head_dim=16)

    def launches(ordering: str | None) -> list[str]:
        layout = rs.Layout(tokens, world_size, ordering)
        ranks = rs.explain(inputs, pattern=pattern, layout=layout).ranks
        return [launch for rank in ranks for step in rank.steps for launch in step.launches]

    assert all(launch.endswith("views") for launch in launches(name))
    assert any(launch.endswith("gathered") for launch in launches(None))
