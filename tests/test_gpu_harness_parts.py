"""What the harness for GPUs does when kernels die, hang or fail, and when its time is over."""

from __future__ import annotations

import math
import os
import sys
import textwrap
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.isolation.workspace import ROOT

# Benchmarks are scripts, which find each other beside themselves.
sys.path.append(str(ROOT / "benchmarks"))
import gpu
import gpu_accuracy
import gpu_conformance
import gpu_site
import gpu_steps
import kernels
from figures import Figure, Target, Unmeasured, taken
from gpu_budget import Budget

CPU = torch.device("cpu")
PLUGIN = """
import os, time
from ringspan.contracts import hookimpl
from ringspan.testing.toy import Toy

class Unwell(Toy):
    name = "unwell"

    def backward(self, *tensors, mask, scale):
        {what}
        return super().backward(*tensors, mask=mask, scale=scale)

@hookimpl
def ringspan_attention_backends():
    return [Unwell()]
"""
JOB = gpu_conformance.Job("backend", "unwell", "test_every_mask_in and float64")


def unwell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Installs a backend for the processes of suites, whose backward does `what` first."""
    info = tmp_path / "unwell-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: unwell\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[ringspan]\nunwell = unwell\n")
    (tmp_path / "unwell.py").write_text(textwrap.dedent(PLUGIN).format(what=what))
    path = [str(tmp_path), *(each for each in sys.path if each)]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))


def test_a_suite_that_kills_its_process_is_recorded_with_the_test_that_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwell(tmp_path, monkeypatch, "os.abort()")
    found = gpu_conformance.record(JOB, CPU, Budget())
    assert found["state"] == "crashed"
    assert found["ended"] == "exit status -6"
    assert len(found["unfinished"]) == 1
    assert found["unfinished"][0].startswith("test_every_mask")
    assert found["left_out"] == found["collected"]


def test_a_suite_that_hangs_ends_with_its_time_and_says_what_it_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwell(tmp_path, monkeypatch, "time.sleep(600)")
    budget, start = Budget(15), time.monotonic()
    found = gpu_conformance.record(JOB, CPU, budget)
    assert time.monotonic() - start < 60
    assert found["state"] == "not run"
    assert len(budget.left_out) == 1
    assert budget.left_out[0].startswith("backend unwell: ")


def test_a_suite_that_fails_names_its_tests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unwell(tmp_path, monkeypatch, "raise RuntimeError('an illegal memory access')")
    found = gpu_conformance.record(JOB, CPU, Budget())
    assert found["state"] == "failed"
    assert all("an illegal memory access" in failure["what"] for failure in found["failed"])
    assert all("float64" in failure["test"] for failure in found["failed"])


def test_a_summary_keeps_what_was_served_without_the_name_of_the_device() -> None:
    events: list[dict[str, Any]] = [
        {"collected": 5},
        {"test": "test_a[cuda:0-full-float32]", "state": "started"},
        {"test": "test_a[cuda:0-full-float32]", "state": "served"},
        {"test": "test_a[cuda:0-causal-float32]", "state": "refused"},
        {"test": "test_b", "state": "passed"},
        {"test": "test_c[cuda:0]", "state": "served"},
        {"test": "test_c[cuda:0]", "state": "failed", "what": "in its teardown"},
    ]
    found = gpu_conformance.summary(events)
    assert found["served"] == {"test_a": ["full-float32"]}
    assert (found["state"], found["passed"], found["refused"]) == ("failed", 3, 1)
    assert (found["collected"], found["left_out"]) == (5, 1)


def test_without_pytest_no_suite_runs_and_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu_conformance, "find_spec", lambda name: None)
    found = gpu_conformance.check(CPU, True, Budget())
    assert found["conformance"] == []
    assert found["exact"]
    assert found["not_run"]["backend manual"].startswith("needs pytest and hypothesis")


def test_parts_without_time_compute_nothing_and_say_so() -> None:
    budget = Budget(0)
    record = kernels.measured(CPU, True, budget)
    assert budget.left_out == [figure["name"] for figure in record["kernels"]]
    reasons = {figure["measured"] for figure in record["kernels"]}
    assert reasons == {"not measured: the time of this part was over"}
    assert gpu_steps.check(CPU, True, Budget(0))["steps"] == []
    left_out = gpu_accuracy.check(CPU, 4, 32, Budget(0))["left_out"]
    assert left_out == ["cases from number 0 of 4 on"]


def test_all_parts_together_take_less_than_ten_minutes() -> None:
    assert sum(gpu.SECONDS.values()) <= 600 - 30


def test_a_suite_sees_the_device_that_is_measured_alone_and_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = torch.device("cuda", 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert gpu_conformance.environment_of(second)["CUDA_VISIBLE_DEVICES"] == "1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-7")
    assert gpu_conformance.environment_of(second)["CUDA_VISIBLE_DEVICES"] == "GPU-7"
    assert "CUDA_VISIBLE_DEVICES" not in gpu_conformance.environment_of(CPU)


def test_a_budget_counts_down() -> None:
    budget = Budget(0.05)
    assert budget.allows("now")
    time.sleep(0.06)
    assert not budget.allows("then")
    assert budget.left == 0
    assert budget.left_out == ["then"]
    assert Budget().left == math.inf


def raises(error: Exception) -> Any:
    def measure() -> tuple[float, dict[str, Any]]:
        raise error

    return measure


@pytest.mark.parametrize(
    ("error", "reason", "failed"),
    [
        (Unmeasured("no such kernel"), "no such kernel", False),
        (torch.OutOfMemoryError("wanted 80 GB\nmore"), "out of memory: wanted 80 GB", False),
        (RuntimeError("illegal memory access"), "illegal memory access", True),
    ],
)
def test_a_figure_that_cannot_be_had_says_why(error: Exception, reason: str, failed: bool) -> None:
    record = taken(Figure("speed", "ratio", raises(error), Target(1.0)), CPU, Budget())
    assert record["measured"].startswith("not measured: ")
    assert reason in record["measured"]
    assert record["met"] is None
    assert record.get("failed", False) is failed


def test_a_figure_meets_its_target_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    fast = Figure("speed", "ratio", lambda: (1.5, {"ran": "toy"}), Target(1.4))
    small = Figure("memory", "GB", lambda: (1.5, {}), Target(1.4, at_least=False))
    gpu = torch.device("cuda")
    assert taken(fast, CPU, Budget())["met"] is None
    assert taken(fast, gpu, Budget()) == {
        "name": "speed",
        "unit": "ratio",
        "target": ">= 1.4",
        "measured": 1.5,
        "met": True,
        "ran": "toy",
    }
    assert taken(small, gpu, Budget())["met"] is False


def wheel(folder: Path, name: str, python: str) -> None:
    with zipfile.ZipFile(folder / f"{name}-1.0-{python}-none-any.whl", "w") as archive:
        archive.writestr(f"{name}.py", "")


def test_kernels_that_are_brought_along_are_found_and_those_of_other_pythons_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought, site = tmp_path / "wheels", tmp_path / "site"
    brought.mkdir()
    site.mkdir()
    wheel(brought, "lonely_kernel", "py3")
    wheel(brought, "another_kernel", "cp27")
    monkeypatch.setattr(gpu_site, "THIRD_PARTY", brought)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    gpu_site.prepare(site)
    assert (site / "lonely_kernel.py").exists()
    assert not (site / "another_kernel.py").exists()
    path = os.environ["PYTHONPATH"].split(os.pathsep)
    assert path[0] == str(site)
    assert path[-1] == "/somewhere"
    plugins = {str(file.parent / "src") for file in ROOT.glob("plugins/*/*/pyproject.toml")}
    assert plugins <= set(path) == set(path) & {*sys.path, "/somewhere"}
