"""The command line tells of measured times, of names that nobody offers, and of quarantine."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import ringspan
import torch
from ringspan.catalogue import catalogue, configuration
from ringspan.cli.app import app
from ringspan.contracts import DeviceInfo
from ringspan.errors import ConfigurationError
from ringspan_registry.measurements import MeasurementFile, Subject
from typer.testing import CliRunner, Result

if TYPE_CHECKING:
    from pathlib import Path

SUBJECT = Subject(
    kind="backend",
    problem="Problem(device=cuda, mask=causal)",
    shape="Sample(tiles=4)",
    device="NVIDIA H100",
    compute_capability="9.0",
    driver="550.1",
    software="torch 2.13.0",
    provider="slow",
    distribution="ringspan-slow 1.0",
    kernel="3.1",
)


@pytest.fixture
def times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the settings say that times are kept."""
    path = tmp_path / "times.json"
    monkeypatch.setenv("RINGSPAN_AUTOTUNE_FILE", str(path))
    return path


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})


def words(result: Result) -> str:
    assert result.exit_code == 0, result.stderr
    return " ".join(result.stdout.split())


@pytest.mark.parametrize("arguments", [(), ("--show",)])
def test_each_problem_has_a_winner_and_the_times_of_all(
    times: Path, arguments: tuple[str, ...]
) -> None:
    fast = replace(SUBJECT, provider="fast", distribution="ringspan-fast 2.0", kernel="")
    MeasurementFile(times).add({SUBJECT: 0.00025, fast: 0.000125})
    MeasurementFile(times).add({replace(SUBJECT, shape="Sample(tiles=8)"): 3.0})
    shown = words(run("autotune", *arguments))
    assert f"2 measured problems in {times}" in shown
    for word in (
        "Problem(device=cuda, mask=causal)",
        "Sample(tiles=4)",
        "Sample(tiles=8)",
        "NVIDIA H100",
        "compute capability 9.0",
        "driver 550.1",
        "torch 2.13.0",
        "fast (ringspan-fast 2.0): 0.000125 s",
        "slow (ringspan-slow 1.0, 3.1): 0.00025 s",
    ):
        assert all(part in shown for part in word.split())
    (first, second) = json.loads(run("autotune", "--json").stdout)["contests"]
    assert [time["provider"] for time in first["times"]] == ["fast", "slow"]
    assert [time["seconds"] for time in second["times"]] == [3.0]


def test_nothing_measured_is_told_as_such(times: Path) -> None:
    assert words(run("autotune", "--show")) == f"0 measured problems in {times}"


def test_clear_removes_all_times(times: Path) -> None:
    MeasurementFile(times).add({SUBJECT: 1.0})
    assert words(run("autotune", "--clear")) == f"Removed 1 times from {times}"
    assert not times.exists()


def test_clear_and_show_are_not_asked_at_once(times: Path) -> None:
    MeasurementFile(times).add({SUBJECT: 1.0})
    for other in ("--show", "--json"):
        result = run("autotune", "--clear", other)
        assert result.exit_code == 2
        assert "--clear: expected no --show or --json beside it" in result.stderr
    assert times.exists()


@pytest.mark.parametrize("option", ["--show", "--clear"])
def test_a_file_that_is_not_ours_is_one_error_and_stays(times: Path, option: str) -> None:
    times.write_text("my diary")
    result = run("autotune", option)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert str(times) in result.stderr
    assert times.read_text() == "my diary"


@pytest.mark.parametrize("value", [True, False, "true", "on"])
def test_the_switch_of_earlier_versions_is_refused_by_naming_the_values(value: object) -> None:
    with (
        pytest.raises(ConfigurationError, match=r"autotune: expected 'first-run' or 'off', got"),
        configuration().use(autotune=value),
    ):
        pass


def test_a_switch_of_earlier_versions_in_a_file_is_named_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "ringspan.toml"
    file.write_text("autotune = true\n")
    monkeypatch.setenv("RINGSPAN_CONFIG", str(file))
    configuration().reload()
    try:
        result = run("doctor")
    finally:
        monkeypatch.undo()
        configuration().reload()
    assert result.exit_code == 2
    assert f"autotune in {file}: expected 'first-run' or 'off', got True" in result.stderr


def doctor(*arguments: str) -> Any:
    return json.loads(run("doctor", "--json", *arguments).stdout)


@pytest.mark.usefixtures("_toy_distribution")
@pytest.mark.parametrize("kind", ["backend", "communicator"])
def test_doctor_flags_a_configured_name_that_nobody_offers(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor()["unknown_names"] == []
    monkeypatch.setenv(f"RINGSPAN_{kind.upper()}", "auto,nobody")
    (told,) = doctor()["unknown_names"]
    assert told.startswith(f"{kind} (from environment): expected one of ")
    assert "got 'nobody'" in told
    assert f"warning: {kind} (from environment)" in words(run("doctor"))


@pytest.mark.usefixtures("_toy_distribution")
def test_doctor_shows_what_is_quarantined() -> None:
    catalogue.cache_clear()
    try:
        assert doctor()["quarantined"] == []
        catalogue().quarantine("backend", "toy", "forward raised RuntimeError: boom")
        (told,) = doctor()["quarantined"]
        assert told == {
            "kind": "backend",
            "name": "toy",
            "reason": "forward raised RuntimeError: boom",
        }
        shown = words(run("doctor"))
        assert "quarantined: backend toy: forward raised RuntimeError: boom" in shown
    finally:
        catalogue.cache_clear()


def test_doctor_recommends_a_dtype_for_each_device() -> None:
    assert doctor()["devices"][0]["recommended_dtype"] == "float32"
    assert "recommended dtype float32" in words(run("doctor"))


def test_the_recommended_dtype_is_at_the_front_door() -> None:
    ampere = DeviceInfo(type="cuda", compute_capability=(8, 6))
    assert ringspan.recommended_dtype(ampere) == "bfloat16"
    assert "recommended_dtype" in dir(ringspan)
    assert hasattr(torch, ringspan.recommended_dtype("cpu"))
