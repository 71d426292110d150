"""`make gpu` on a CPU: the harness that GPUs are measured with finds what it must find."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.isolation.run import build
from tests.isolation.workspace import ROOT, distributions

TENSORS = {"out", "lse", "grad_query", "grad_key", "grad_value"}
RESULTS = ROOT / "benchmarks" / "results"
# A backend that is one in a thousand too large, on the Python path like any installed plugin.
CROOKED = """
from ringspan.contracts import TileOutput, hookimpl
from ringspan.testing.toy import Toy

class Crooked(Toy):
    name = "crooked"

    def forward(self, query, key, value, *, mask, scale):
        out, lse = super().forward(query, key, value, mask=mask, scale=scale)
        return TileOutput(out * 1.001, lse)

@hookimpl
def ringspan_attention_backends():
    return [Crooked()]
"""


def harness(
    *arguments: str, python: tuple[str, ...] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs it without the wheels that this test may run on: it must find the sources itself."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, *python, "benchmarks/gpu.py", *arguments],
        cwd=ROOT,
        env=environment | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def on_cpu(out: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return harness("--device", "cpu", "--quick", "--out", str(out), *arguments, **variables)


def read(out: Path, part: str) -> dict[str, Any]:
    record = json.loads((out / f"{part}.json").read_text())
    assert isinstance(record, dict)
    return record


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that one quick run of all parts wrote."""
    out = tmp_path_factory.mktemp("results")
    done = on_cpu(out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every number is exact" in done.stdout
    return out


@pytest.mark.parametrize(
    "part", ["conformance", "accuracy", "steps", "ring", "overhead", "kernels"]
)
def test_every_result_names_its_machine_and_says_that_a_cpu_is_not_a_gpu(
    results: Path, part: str
) -> None:
    record = read(results, part)
    assert record["machine"]["note"].startswith("not a GPU")
    facts = {"name", "torch", "triton", "cuda", "cudnn", "driver", "python", "date"}
    assert facts <= set(record["machine"])
    assert record["quick"]
    assert record["seconds"] > 0


def test_every_plugin_of_the_sources_is_found_though_none_is_installed(results: Path) -> None:
    record = read(results, "accuracy")
    plugins = {found.key for found in distributions() if found.is_plugin}
    assert plugins == {provider["plugin"] for provider in record["providers"]}
    assert record["machine"]["ringspan_from"] == "sources"
    unusable = [each for each in record["providers"] if not each["usable"]]
    assert unusable
    assert all(each["reason"] for each in unusable)


def test_every_usable_backend_and_communicator_passes_the_standard_tests(results: Path) -> None:
    record = read(results, "conformance")
    usable = {
        (each["kind"], each["name"])
        for each in record["providers"]
        if each["usable"] and each["kind"] != "ordering"
    }
    found = {(each["kind"], each["name"]): each for each in record["conformance"]}
    assert set(found) == usable
    assert {each["state"] for each in found.values()} == {"passed"}
    masks = found["backend", "manual"]["served"][
        "test_every_mask_in_every_dtype_is_exact_or_refused"
    ]
    assert {"full-bfloat16", "causal-float64"} <= set(masks)
    assert all(record["not_run"].values())


def test_every_usable_backend_lives_in_compiled_and_checkpointed_steps(results: Path) -> None:
    record = read(results, "steps")
    usable = {p["name"] for p in record["providers"] if p["kind"] == "backend" and p["usable"]}
    assert {each["backend"] for each in record["steps"]} == usable
    for each in record["steps"]:
        assert each["compile"] == each["checkpoint"] == "exact"
        assert each["syncs"].startswith("not run")
        assert each["host_microseconds"].startswith("not measured")


def test_every_figure_is_a_number_or_says_why_not_and_a_cpu_meets_no_target(results: Path) -> None:
    record = read(results, "kernels")
    assert "no figure of a GPU" in record["note"]
    for figure in record["kernels"]:
        assert figure["met"] is None
        value = figure["measured"]
        assert value > 0 if isinstance(value, float) else value.startswith("not measured: ")
    unmeasured = [f["name"] for f in record["kernels"] if isinstance(f["measured"], str)]
    assert all("FA2" in name or "triton" in name for name in unmeasured)


def test_every_usable_backend_is_measured_in_every_dtype_that_it_takes(results: Path) -> None:
    record = read(results, "accuracy")
    usable = {p["name"] for p in record["providers"] if p["kind"] == "backend" and p["usable"]}
    dtypes = {"float16", "bfloat16", "float32", "float64"}
    tried = {(each["backend"], each["dtype"]) for each in record["accuracy"]}
    assert tried == {(name, dtype) for name in usable | {"auto"} for dtype in dtypes}
    assert record["exact"]
    for each in record["accuracy"]:
        assert each["computed"] + each["refused"] == record["configurations"]
        assert set(each["ratios"]) == TENSORS
        assert 0 < max(each["ratios"].values()) <= 1


def test_rings_of_two_and_three_move_data_and_are_exact(results: Path) -> None:
    record = read(results, "ring")
    assert [(ring["transport"], ring["world_size"]) for ring in record["rings"]] == [
        ("gloo", 2),
        ("gloo", 3),
    ]
    assert record["not_run"] == {"nccl": "needs GPUs"}
    for ring in record["rings"]:
        assert ring["exact"]
        assert ring["bytes_received"] > 0
        assert 0 < max(ring["ratios"].values()) <= 1


@pytest.mark.parametrize("part", ["conformance", "accuracy", "steps", "ring", "kernels"])
def test_nothing_is_left_out_where_there_is_time(results: Path, part: str) -> None:
    assert read(results, part)["left_out"] == []


def test_overhead_is_measured_in_each_dtype_full_and_causal(results: Path) -> None:
    measured = read(results, "overhead")["overhead"]
    assert len({(each["dtype"], each["causal"]) for each in measured}) == len(measured) == 4
    assert all(each["ratio"] > 0 and each["memory"] > 0 for each in measured)


def test_without_a_cuda_device_it_says_so_and_runs_nothing() -> None:
    before = set(RESULTS.rglob("*"))
    done = harness("--quick", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 2
    assert "needs a CUDA device" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert set(RESULTS.rglob("*")) == before


def test_without_site_packages_it_says_what_is_missing() -> None:
    done = harness(python=("-S", "-E"))
    assert done.returncode == 2
    assert "needs torch, which is not installed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_backend_that_is_not_exact_is_named_and_fails_the_run(tmp_path: Path) -> None:
    info = tmp_path / "crooked-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: crooked\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ringspan]\ncrooked = crooked\n")
    (tmp_path / "crooked.py").write_text(CROOKED)
    out = tmp_path / "out"
    done = on_cpu(out, "--parts", "accuracy", PYTHONPATH=str(tmp_path))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "NOT EXACT" in done.stdout
    inexact = {
        (each["backend"], each["dtype"])
        for each in read(out, "accuracy")["accuracy"]
        if each["inexact"]
    }
    # In 16 bits the fault is smaller than a rounding error.
    assert {("crooked", "float32"), ("crooked", "float64")} <= inexact
    assert {name for name, _ in inexact} == {"crooked"}


def test_wheels_can_be_measured_instead_of_the_sources(tmp_path: Path) -> None:
    build(distributions(), tmp_path / "wheels")
    out = tmp_path / "out"
    options = ("--parts", "accuracy", "--configurations", "1")
    done = on_cpu(out, *options, "--wheels", str(tmp_path / "wheels"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert read(out, "accuracy")["machine"]["ringspan_from"] == "wheels"
