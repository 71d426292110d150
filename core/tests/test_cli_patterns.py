"""Patterns written at the command line: read as literals, refused in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import ringspan as rs
from ringspan.cli.app import app
from ringspan.contracts import Pattern
from ringspan.errors import InvalidArgument
from ringspan.patterns.written import pattern_written
from typer.testing import CliRunner


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("Dense()", rs.Dense()),
        ("rs.Dense(window=(64, None))", rs.Dense(window=(64, None))),
        ("Neighborhood(7, edges='shift')", rs.Neighborhood(7, edges="shift")),
        ("Neighborhood((3, 7), causal_axes=(0,))", rs.Neighborhood((3, 7), causal_axes=(0,))),
        ("BlockSparse.local(64, 1, right=0)", rs.BlockSparse.local(64, 1, 0)),
        ("HeadGroups((8, 16), (1, 2))", rs.HeadGroups((8, 16), (1, 2))),
        (
            "Dilated((8,), (2,), along=Along('hilbert', fold=True))",
            rs.Dilated((8,), (2,), along=rs.Along("hilbert", fold=True)),
        ),
    ],
)
def test_a_pattern_is_read_as_python_writes_it(text: str, pattern: Pattern) -> None:
    assert pattern_written(text) == pattern


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Neighborhood(7,", "such as 'Neighborhood.*was never closed"),
        ("", "such as 'Neighborhood"),
        ("(1, 2)", "such as 'Neighborhood"),
        ("Along('hilbert')", "such as 'Neighborhood"),
        ("Nobody(7)", "one of Along, BlockSparse.dilated_blocks, .*, got Nobody"),
        ("BlockSparse(64, 1)", "one of Along, .*, got BlockSparse"),
        ("BlockSparse.from_mask(64, print, 8)", "one of Along, .*, got BlockSparse.from_mask"),
        ("__import__('os').system('true')", "one of Along, .*, got __import__"),
        ("Neighborhood(print)", "literals as arguments, got print"),
        ("Neighborhood(*[7])", r"literals as arguments, got \*\[7\]"),
        ("Neighborhood(**{'window': 7})", r"Neighborhood\(window, dilation=1, .*\), got"),
        ("Neighborhood()", "got Neighborhood.*: missing a required argument: 'window'"),
        ("Neighborhood(7, of=9)", "unexpected keyword argument 'of'"),
    ],
)
def test_what_is_no_pattern_is_refused_and_nothing_is_run(text: str, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as refusal:
        pattern_written(text)
    assert refusal.value.argument == "--pattern"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["explain", "--n", "64", "--pattern", "Neighborhood(0)"], "window: expected"),
        (["explain", "--n", "64", "--pattern", "Neighborhood((3, 3))"], "pattern: expected"),
        (["explain", "--grid", "8x8", "--pattern", "Neighborhood(9)"], "window: expected"),
        (["explain", "--n", "64", "--pattern", "Dense()", "--dense"], "--segments: expected"),
        (["explain", "--n", "64", "--pattern", "Dense()", "--segments", "8"], "--segments"),
        (["explain", "--n", "64", "--pattern", "Dense()", "--along", "hilbert"], "--along"),
        (["plot", "pattern", "--pattern", "Dense()", "--segments", "8"], "--pattern: expected"),
        (["plot", "pattern", "--pattern", "Dense"], "--pattern: expected"),
    ],
)
def test_a_pattern_that_does_not_fit_is_one_line_on_stderr(
    arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {word}")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_explain_counts_what_a_neighbourhood_computes() -> None:
    result = CliRunner().invoke(
        app,
        ["explain", "--grid", "16x16", "--pattern", "Neighborhood(1)", "--heads", "1",
         "--head-dim", "4", "--json"],
    )  # fmt: skip
    content = json.loads(result.stdout)
    assert content["pattern"].startswith("Neighborhood(window=1")
    assert content["flops"] > 0


@pytest.mark.parametrize("text", ["Neighborhood(3)", "BlockSparse.local_global(8, 1, 1, 1)"])
def test_plot_draws_any_pattern(text: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "pattern.png"
    result = CliRunner().invoke(
        app, ["plot", "pattern", "--grid", "8x8", "--pattern", text, "--out", str(out)]
    )
    assert result.exit_code == 0
    assert out.stat().st_size > 1000
