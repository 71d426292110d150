"""`python -m ringspan.bench.ring` in real processes: everything but how large its figures are."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ringspan.bench.options import parsed
from ringspan.bench.ring import main
from ringspan.bench.settings import Settings
from ringspan.catalogue import catalogue
from ringspan.errors import InvalidArgument, UnknownProvider

BENCH = [sys.executable, "-m", "ringspan.bench.ring"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
TINY = ["--min-tokens=128", "--max-tokens=256", "--check-tokens=128", "--repeats=2", "--heads=4"]
TINY += ["--kv-heads=2", "--head-dim=8"]
LONGNET = "Dilated.geometric(N, base=32)"
QUIET = os.environ | {"OMP_NUM_THREADS": "1"}
SECONDS = 120


def under_torchrun(*options: str, path: Path) -> tuple[str, Any]:
    """What two ranks print and write."""
    command = [*TORCHRUN, *BENCH[1:], *TINY, *options, f"--json={path}"]
    done = subprocess.run(
        command, env=QUIET, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """Two patterns with and without Hilbert, and zigzag: what is printed, what is written."""
    options = [f"--pattern={LONGNET}", "--pattern=Dense()", "--causal", "--compare"]
    path = tmp_path_factory.mktemp("bench") / "results" / "ring.json"
    return under_torchrun(*options, "--orderings=none,zigzag", path=path)


def test_with_and_without_hilbert_means_pattern_and_storage_at_every_length(
    comparison: tuple[str, dict[str, Any]],
) -> None:
    _, written = comparison
    curves = [(LONGNET, "none"), (LONGNET, "hilbert"), ("Dense()", "none")]
    stores = ("none", "zigzag", "hilbert")
    expected = [(*curve, stored, "isend") for curve in curves for stored in stores]
    found = [
        (each["tokens"], each["pattern"], each["along"], each["stored"], each["communicator"])
        for each in written["results"]
    ]
    assert found == [(N, *each) for N in (128, 256) for each in expected]
    left_out = {each["what"]: each["why"] for each in written["left_out"]}
    assert "None without a window" in left_out["Dense() along hilbert"]
    assert "virtual" in left_out["host"]


def test_every_sample_and_every_rank_is_written(comparison: tuple[str, dict[str, Any]]) -> None:
    for each in comparison[1]["results"]:
        for times in each["seconds"].values():
            assert len(times["samples"]) == 2
            assert times["least"] <= times["median"] <= times["most"]
            assert sorted(times["samples"]) == [times["least"], times["most"]]
        assert each["tokens_per_second"] == each["tokens"] / each["seconds"]["call"]["median"]
        for lists in (each["counted"], each["plan"]):
            assert all(len(x) == 2 for x in lists.values() if isinstance(x, list))
        assert min(each["counted"]["peak"]) > 0
        assert min(each["plan"]["memory"]) > 0
        assert each["counted"]["ran"]["communicator"] == "isend"


def test_the_bytes_that_arrive_are_those_of_the_plan(
    comparison: tuple[str, dict[str, Any]],
) -> None:
    for each in comparison[1]["results"]:
        assert each["bytes_as_planned"]
        assert each["counted"]["received"] == each["plan"]["received"]
        assert each["counted"]["received_forward"] == each["plan"]["received_forward"]
        assert sum(each["counted"]["sent"]) == sum(each["counted"]["received"]) > 0


def test_errors_stand_beside_those_of_one_process(
    comparison: tuple[str, dict[str, Any]],
) -> None:
    for each in comparison[1]["results"]:
        assert each["errors"]["tokens"] == 128
        for errors in (each["errors"]["ring"], each["errors"]["one_process"]):
            assert list(errors) == ["out", "grad_query", "grad_key", "grad_value"]
            assert 0 < max(errors.values()) < 1


def test_the_machine_and_the_question_are_written(comparison: tuple[str, dict[str, Any]]) -> None:
    written = comparison[1]
    assert written["failure"] == ""
    assert written["environment"]["world_size"] == 2
    assert len(written["environment"]["devices"]) == 2
    assert written["environment"]["plugins"].keys() >= {"isend", "hilbert"}
    assert written["settings"]["orderings"] == ["none", "zigzag", "hilbert"]
    assert written["settings"]["grid"]


def test_the_table_has_a_line_for_each_result(comparison: tuple[str, dict[str, Any]]) -> None:
    shown, written = comparison
    header, *lines = shown.splitlines()
    assert header.split()[:4] == ["tokens", "pattern", "pattern", "along"]
    for line, each in zip(lines, written["results"], strict=False):
        assert line.startswith(f"{each['tokens']} ")
        assert each["stored"] in line


def test_patience_ends_the_growth_of_all_ranks_alike(tmp_path: Path) -> None:
    options = [f"--pattern={LONGNET}", "--patience=1e-9", "--no-backward", "--repeats=3"]
    _, written = under_torchrun(*options, path=tmp_path / "ring.json")
    measured, ended = written["results"]
    assert len(measured["seconds"]["call"]["samples"]) == 1
    assert measured["bytes_as_planned"]
    assert list(measured["errors"]["ring"]) == ["out"]
    assert "--patience 1e-09" in ended["skipped"]
    assert "seconds" not in ended


def test_what_would_not_fit_is_not_tried(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "ring.json"
    limits = ["--memory-limit=0.0003", "--max-tokens=1024", f"--json={path}"]
    assert main([*TINY, *limits, "--check-tokens=64"]) == 0
    results = json.loads(path.read_text())["results"]
    skipped = {each["tokens"]: each["skipped"] for each in results}
    assert skipped[128] == ""
    assert skipped[512].startswith("would need ")
    assert "GiB of 0.0003 GiB allowed on rank 0" in skipped[512]
    assert skipped[1024].startswith("grew no further: at 512 tokens would need ")
    assert "skipped: would need" in capsys.readouterr().out


def test_one_process_compares_itself_with_virtual_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = catalogue().provider("communicator", "host")
    assert host.section is not None
    monkeypatch.setattr(host, "section", host.section.model_copy(update={"chunk": 50}))
    path = tmp_path / "ring.json"
    options = ["--communicators=none,host", "--orderings=none,hilbert", "--grid", "--causal"]
    assert main([*TINY, f"--pattern={LONGNET}", *options, f"--json={path}"]) == 0
    results = json.loads(path.read_text())["results"]
    assert [each["communicator"] for each in results] == ["none", "host"] * 4
    for alone, host_ranks in zip(results[::2], results[1::2], strict=True):
        assert alone["bytes_as_planned"]
        assert alone["counted"]["received"] == alone["counted"]["resident"] == [0]
        assert host_ranks["bytes_as_planned"]
        assert min(host_ranks["counted"]["received"] + host_ranks["counted"]["resident"]) > 0
        assert "sizes=(43, 43, 42)" in results[1]["plan"]["layout"]
        # Rows in the wrong order would err by as much as the largest element.
        assert 0 < max(host_ranks["errors"]["ring"].values()) < 1


def test_without_anything_measured_the_benchmark_has_failed() -> None:
    assert main([*TINY, "--memory-limit=1e-7"]) == 1


def test_a_lost_rank_is_named_and_what_was_measured_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "ring.json"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    command = [*BENCH, *TINY, "--max-tokens=65536", f"--pattern={LONGNET}", f"--json={path}"]
    ranks = [
        subprocess.Popen(
            command,
            env=QUIET | meeting | {"RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        assert ranks[0].stderr is not None
        for line in ranks[0].stderr:
            if line.startswith("128 tokens"):
                break
        ranks[1].kill()
        said = ranks[0].communicate(timeout=SECONDS)[1]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert ranks[0].returncode == 1
    assert "rank 0 of 2: " in said
    written = json.loads(path.read_text())
    assert written["failure"].startswith("rank 0 of 2: ")
    assert written["results"][0]["seconds"]


def test_lengths_double_up_to_the_longest() -> None:
    assert Settings(min_tokens=1000, max_tokens=5000).lengths == (1000, 2000, 4000)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (["--repeats=0"], "--repeats"),
        (["--min-tokens=512", "--max-tokens=256"], "--max-tokens"),
        (["--kv-heads=3"], "--kv-heads"),
        (["--patience=nan"], "--patience"),
        (["--memory-limit=0"], "--memory-limit"),
        (["--pattern=Dense("], "--pattern"),
        (["--pattern=Nobody(N)"], "--pattern"),
        (["--orderings=nobody"], "--orderings"),
        (["--orderings=none,none"], "--orderings"),
        (["--orderings="], "--orderings"),
        (["--orderings=hilbert"], "--orderings"),
        (["--along=hilbert"], "--along"),
        (["--communicators=nobody"], "--communicators"),
        (["--dtype=int8"], "options"),
        (["--max=1"], "options"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(options: list[str], name: str) -> None:
    with pytest.raises((InvalidArgument, UnknownProvider)) as refusal:
        parsed(options)
    assert refusal.value.argument == name


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--communicators=isend"], "one process has nobody to talk to"),
        (["--process-group=nccl", "--device=cpu"], "gloo on a CPU"),
        (["--frobnicate"], "unrecognized arguments: --frobnicate"),
    ],
)
def test_a_refusal_is_one_line_and_the_exit_status_2(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(options) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("rank 0: error: ")
    assert words in told.err
    assert told.err.count("\n") == 1
