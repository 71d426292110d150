"""The command line: one line per error, data as JSON, pictures, and advice on missing extras."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table
from ringspan.cli.app import app
from ringspan.cli.doctor import table
from ringspan.cli.extras import missing, require
from ringspan.errors import InvalidArgument, RingspanError
from typer.testing import CliRunner, Result

BROKEN_PLUGIN = "raise RuntimeError('my wheels came off')\n"
BROKEN_METADATA = "Metadata-Version: 2.1\nName: broken-wheels\nVersion: 1.2.3\n"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def explained(*arguments: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(run("explain", *arguments, "--json").stdout)
    return content


def command(
    code: str, *arguments: str, path: Path | None = None
) -> subprocess.CompletedProcess[str]:
    lines = ["import sys", f"sys.argv = {['ringspan', *arguments]!r}"]
    if path is not None:
        lines.append(f"sys.path.append({str(path)!r})")
    lines += [code, "from ringspan.cli import main", "main()"]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed plugin whose import fails."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "broken_wheels.py").write_text(BROKEN_PLUGIN)
    info = folder / "broken_wheels-1.2.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(BROKEN_METADATA)
    (info / "entry_points.txt").write_text("[ringspan]\nwheels = broken_wheels\n")
    return folder


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["explain", "--dense"], "--n: expected a number of tokens"),
        (["explain", "--n", "64"], "--segments: expected either"),
        (["explain", "--n", "64", "--dense", "--segments", "8"], "--segments: expected either"),
        (["explain", "--n", "64", "--segments", "8,x"], "--segments: expected integers"),
        (["explain", "--n", "64", "--segments", "8", "--rates", "1,2"], "dilation_rates: expected"),
        (["explain", "--n", "64", "--segments", "8", "--rates", "0"], "dilation_rates[0]"),
        (["explain", "--n", "64", "--dense", "--along", "hilbert"], "--along: expected"),
        (["explain", "--n", "64", "--dense", "--heads", "4", "--kv-heads", "3"], "heads"),
        (["explain", "--n", "64", "--dense", "--dtype", "int8"], "dtype: expected"),
        (["explain", "--n", "64", "--dense", "--world-size", "0"], "world_size"),
        (["explain", "--n", "64", "--grid", "4x4", "--dense"], "--n: expected 16"),
        (["explain", "--grid", "4by4", "--dense"], "--grid: expected integers"),
        (["explain", "--n", "64", "--dense", "--backend", "nobody"], "backend: expected"),
        (["explain", "--n", "64", "--dense", "--axes", "1,0"], "--axes: expected --ordering"),
        (["explain", "--n", "64", "--dense", "--chunk", "8"], "--chunk: expected --ordering"),
        (["explain", "--n", "64", "--dense", "--block-size", "0"], "block_size: expected"),
        (["explain", "--n", "64", "--dense", "--points", "p.npy"], "--points: expected no --n"),
        (["plot", "pattern", "--out", "picture.gif"], "out: expected"),
        (["plot", "pattern", "--head", "1"], "--head: expected 0 .. 0"),
        (["plot", "pattern", "--kv-heads", "0"], "--kv-heads: expected an integer >= 1, got 0"),
        (["plot", "pattern", "--n", "0"], "tokens: expected 1 .. 1,048,576 tokens to draw, got 0"),
        (["plot", "pattern", "--n", "1048577"], "tokens: expected 1 .. 1,048,576"),
        (["plot", "ordering", "identity", "--grid", "9999x9999"], "got 99,980,001"),
        (["explain", "--n", "99999999999", "--dense"], "memory: expected enough for this problem"),
        (["explain", "--n", str(10**20), "--dense"], "N: expected at most"),
        (["explain", "--n", "64", "--dense", "--world-size", str(10**20)], "world_size: expected"),
        (["explain", "--n", "64", "--dense", "--weights", "1,x"], "--weights: expected numbers"),
        (
            ["explain", "--n", "4", "--dense", "--ranks", "2", "--weights", "1"],
            "weights: expected",
        ),
        (["explain", "--n", "64", "--segments", "8", "--fold"], "--fold: expected --along"),
        (["explain", "--n", "64", "--dense", "--fold"], "--fold: expected --segments"),
        (["explain", "--n", "64", "--dense", "--blocked-offsets"], "--blocked-offsets: expected"),
        (["explain", "--n", "64", "--dense", "--kv-heads", "0"], "kv_heads: expected an integer"),
        (["explain", "--n", "64", "--dense", "--value-head-dim", "0"], "value_head_dim: expected"),
        (["plot", "ordering", "nobody"], "ordering: expected"),
        (["demo", "--text", "/no/such/text"], "--text: expected a file or folder"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(
    arguments: list[str], word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert word in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_debug_shows_the_traceback() -> None:
    assert isinstance(run("--debug", "explain", "--dense").exception, InvalidArgument)


def test_explain_gives_the_plan_of_every_rank() -> None:
    content = explained("--n", "4096", "--dense", "--heads", "4", "--head-dim", "32",
                        "--world-size", "2")  # fmt: skip
    received = [rank["cost"]["bytes_received"] for rank in content["ranks"]]
    assert received == [2048 * 4 * (32 + 32) * 4] * 2
    assert content["flops"] == 4 * 4096**2 * 4 * 32


def test_explain_counts_half_for_a_causal_square() -> None:
    full, causal = (
        explained("--n", "100", "--segments", "100", *option)["flops"]
        for option in ((), ("--causal",))
    )
    assert causal * 200 == full * 101


def test_doctor_tells_machine_settings_and_plugins_as_json() -> None:
    content = json.loads(run("doctor", "--json").stdout)
    assert content["devices"][0]["type"] == "cpu"
    assert content["settings"]["backend"]["source"] in ("default", "environment")
    assert isinstance(content["plugins"], list)


def test_doctor_lists_a_broken_plugin_as_faulty_and_goes_on(broken: Path) -> None:
    process = command("", "doctor", "--json", path=broken)
    assert process.returncode == 0
    plugins = {plugin["name"]: plugin for plugin in json.loads(process.stdout)["plugins"]}
    wheels = plugins.pop("wheels")
    assert (wheels["state"], wheels["distribution"]) == ("faulty", "broken-wheels")
    assert "my wheels came off" in wheels["reason"]
    assert "block" in wheels["remedy"].lower()
    assert all(plugin["state"] == "loaded" for plugin in plugins.values())


def test_doctor_shows_people_the_same(broken: Path) -> None:
    process = command("", "doctor", path=broken)
    shown = " ".join(process.stdout.split())
    assert process.returncode == 0
    for word in ("python", "torch", "device cpu", "backend =", "wheels", "faulty"):
        assert word in shown


YES = {"usable": True, "reason": "", "remedy": ""}


def shown_plugin(*devices: dict[str, Any], names: tuple[str, ...] = ("sdpa-efficient",)) -> Table:
    providers = [{"kind": "backend", "name": name, "devices": devices} for name in names]
    facts = {"name": "identity", "distribution": "ringspan-identity", "version": "0.1.0"}
    return table([facts | {"state": "loaded", "reason": "", "remedy": "", "providers": providers}])


def printed(rows: Table, width: int) -> str:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(rows)
    return console.export_text()


def test_the_table_of_plugins_truncates_nothing_at_any_width() -> None:
    no = {"usable": False, "remedy": "Use another", "reason": "a long explanation, " * 9}
    rows = shown_plugin({"device": "cpu"} | YES, {"device": "cuda:0"} | no, {"device": "xpu"} | no)
    letters = sorted(filter(str.isalnum, printed(rows, 400)))
    for width in (60, 80, 100, 200):
        shown = printed(rows, width)
        assert "…" not in shown
        assert max(map(len, shown.splitlines())) <= width
        assert sorted(filter(str.isalnum, shown)) == letters


def test_the_table_of_plugins_keeps_names_whole_at_a_hundred_columns() -> None:
    no = {"usable": False, "remedy": "Use another", "reason": "a long explanation, " * 9}
    rows = shown_plugin({"device": "cpu"} | YES, {"device": "cuda:0"} | no, {"device": "xpu"} | no)
    shown = printed(rows, 100)
    for name in ("identity", "backend sdpa-efficient", "ringspan-identity", "usable on cpu"):
        assert name in shown


def test_the_table_of_plugins_has_one_row_per_provider() -> None:
    rows = shown_plugin({"device": "cpu"} | YES, {"device": "cuda:0"} | YES, names=("one", "two"))
    assert rows.row_count == 2
    assert "cuda:0" not in printed(rows, 100)


def test_a_plugin_that_offers_nothing_has_a_row() -> None:
    assert shown_plugin(names=()).row_count == 1


def test_version_lists_plugins_with_their_versions(broken: Path) -> None:
    process = command("", "--version", path=broken)
    assert process.returncode == 0
    assert process.stdout.startswith("ringspan ")
    assert "  wheels 1.2.3: faulty" in process.stdout


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_plot_draws_a_pattern(tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"pattern.{suffix}"
    result = run("plot", "pattern", "--n", "64", "--segments", "8,64", "--rates", "1,8",
                 "--causal", "--out", str(out))  # fmt: skip
    assert result.exit_code == 0
    assert out.stat().st_size > 1000


@pytest.mark.parametrize(
    ("absent", "arguments", "extra"),
    [
        ("typer", ["doctor"], "ringspan-core[cli]"),
        ("rich", ["--help"], "ringspan-core[cli]"),
        ("matplotlib", ["plot", "pattern"], "ringspan-core[plot]"),
        ("matplotlib", ["demo"], "ringspan-core[plot]"),
        ("safetensors", ["demo"], "ringspan-core[cli]"),
    ],
)
def test_a_missing_extra_is_named(absent: str, arguments: list[str], extra: str) -> None:
    process = command(f"sys.modules[{absent!r}] = None", *arguments)
    assert process.returncode == 2
    assert f"pip install '{extra}'" in process.stderr
    assert "Traceback" not in process.stderr


def test_extras_that_are_there_are_not_missed() -> None:
    assert missing("typer", "rich") is None
    require("typer")


def test_an_error_names_every_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("safetensors", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(RingspanError, match=r"ringspan-core\[cli,plot\]"):
        require("safetensors", "matplotlib")


def test_every_command_has_help() -> None:
    for arguments in ([], ["doctor"], ["explain"], ["plot"], ["plot", "pattern"], ["demo"]):
        result = run(*arguments, "--help")
        assert result.exit_code == 0
        assert "Usage" in result.stdout
