"""Do the standard tests pass with the real kernels, and the real transports, of this device?

Every backend and communicator that is usable here runs its suite of `ringspan.testing` in a process
of its own (`gpu_suite.py`).
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from gpu_budget import Budget
from gpu_site import ROOT
from ringspan.catalogue import catalogue
from ringspan_registry import detect

__all__ = ["Job", "check", "environment_of", "record", "summary"]

QUICK = {
    "backend": "(every_mask_in or every_head_dim or shared_key or halves)",
    "communicator": "(values_travel and {device}-2 or dtype_goes)",
}
"""With `--quick`: the standard tests with these words in their names."""
MOST_AT_ONCE = 8
MEMORY_OF_EACH = 4 * 2**30
"""Bytes of the device that a suite may need, its CUDA context included."""
FAILED = ("failed", "crashed")


@dataclass(frozen=True)
class Job:
    """The suite of one provider."""

    kind: str
    name: str
    select: str
    """Which tests, as pytest's `-k`."""
    note: str = ""
    """What the choice leaves out, and why."""


def check(device: torch.device, quick: bool, budget: Budget) -> dict[str, Any]:
    """The suites of all backends and communicators, several at a time."""
    usable, not_run = _providers(device)
    if lack := [name for name in ("pytest", "hypothesis") if find_spec(name) is None]:
        reason = f"needs {' and '.join(lack)}, which are not there: see the part accuracy"
        not_run |= {f"{kind} {name}": reason for kind, name in usable}
        usable = []
    jobs = [_job(kind, name, device, quick) for kind, name in usable]
    with ThreadPoolExecutor(_at_once(device)) as pool:
        records = list(pool.map(lambda job: record(job, device, budget), jobs))
    return {
        "exact": not any(each["state"] in FAILED for each in records),
        "conformance": records,
        "not_run": not_run,
        "left_out": budget.left_out,
    }


def _at_once(device: torch.device) -> int:
    """How many suites run beside each other: two cores for each, and memory."""
    memory = detect(device).memory_total or 0
    share = memory // MEMORY_OF_EACH if device.type == "cuda" else MOST_AT_ONCE
    return max(1, min(MOST_AT_ONCE, (os.cpu_count() or 1) // 2, share))


def _providers(device: torch.device) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Kind and name of what is usable on `device`, by priority; the reason of what is not."""
    info = detect(device)
    usable: list[tuple[str, int, str]] = []
    not_run = {}
    for plugin in catalogue().plugins():
        for kind, name in plugin.providers:
            if kind == "ordering":
                continue
            answer = catalogue().probe(kind, name, info)
            if answer.usable:
                usable.append((kind, -catalogue().provider(kind, name).priority(info), name))
            else:
                not_run[f"{kind} {name}"] = answer.reason
    # Should time be over, it is the last resorts that were not tried.
    return [(kind, name) for kind, _, name in sorted(usable)], not_run


def _job(kind: str, name: str, device: torch.device, quick: bool) -> Job:
    if name == "nccl":
        note = "NCCL takes one rank per GPU: rings of several are in the part ring"
        return Job(kind, name, "cuda:0-1", f"world sizes above 1: {note}")
    on_gpu = device.type == "cuda"
    words = [QUICK[kind].format(device="cuda:0" if on_gpu else "cpu")] if quick else []
    if on_gpu:
        words.append("not cpu")
    return Job(kind, name, " and ".join(words), "all but a few kinds of tests" if quick else "")


def record(job: Job, device: torch.device, budget: Budget) -> dict[str, Any]:
    """What one suite found, in as many seconds as are left."""
    if not budget.allows(f"{job.kind} {job.name}"):
        return {"kind": job.kind, "name": job.name, "state": "not run"}
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "record.jsonl"
        lines.touch()
        suite = ROOT / "benchmarks" / "gpu_suite.py"
        command = [sys.executable, str(suite), job.kind, job.name, str(lines), "-k", job.select]
        try:
            done = subprocess.run(
                command,
                env=os.environ | environment_of(device),
                capture_output=True,
                text=True,
                timeout=None if math.isinf(budget.left) else max(1.0, budget.left),
                check=False,
            )
        except subprocess.TimeoutExpired:
            ended, output = "time", ""
        else:
            # 0: all passed; 1: some failed; 5: none was selected
            ended = "" if done.returncode in (0, 1, 5) else f"exit status {done.returncode}"
            output = (done.stdout + done.stderr)[-2000:]
        found = summary(json.loads(line) for line in lines.read_text().splitlines())
    if ended == "time":
        left = found["left_out"]
        budget.left_out.append(f"{job.kind} {job.name}: {left} of {found['collected']} tests")
    elif ended:
        found |= {"state": "crashed", "output": output, "ended": ended}
    facts = {"kind": job.kind, "name": job.name, "note": job.note}
    return {**facts, **found, "seconds": time.monotonic() - start}


def environment_of(device: torch.device) -> dict[str, str]:
    """Variables that leave a process two cores, and this device alone, as its first."""
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    if device.type != "cuda":
        return threads
    index, visible = device.index or 0, os.environ.get("CUDA_VISIBLE_DEVICES", "")
    alone = visible.split(",")[index] if visible else str(index)
    return threads | {"CUDA_VISIBLE_DEVICES": alone}


def summary(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """What the lines of one suite come to.

    A test that only started is one that ended the process, or that time ran out in.
    """
    last: dict[str, dict[str, Any]] = {}
    collected = 0
    for event in events:
        collected = event.get("collected", collected)
        if "test" in event:
            # A failure in the teardown is one, whatever came before.
            kept = last.get(event["test"], {})
            last[event["test"]] = kept if kept.get("state") == "failed" else event
    failed = [event for event in last.values() if event["state"] == "failed"]
    ended = [event for event in last.values() if event["state"] != "started"]
    served = [event["test"] for event in last.values() if event["state"] == "served"]
    state = "failed" if failed else "passed" if served else "not run"
    return {
        "state": state,
        "collected": collected,
        "left_out": collected - len(ended),
        "unfinished": [event["test"] for event in last.values() if event["state"] == "started"],
        "passed": sum(event["state"] in ("passed", "served", "refused") for event in ended),
        "refused": sum(event["state"] == "refused" for event in ended),
        "skipped": sorted({event["what"] for event in ended if event["state"] == "skipped"}),
        "failed": [{"test": event["test"], "what": event["what"]} for event in failed],
        "served": dict(_by_test(served)),
    }


def _by_test(ids: list[str]) -> Iterator[tuple[str, list[str]]]:
    """The parameters with which each test was served, without the device's name."""
    cases: dict[str, list[str]] = {}
    for each in ids:
        test, _, parameters = each.rstrip("]").partition("[")
        words = parameters.split("-")
        kept = [word for word in words if word.partition(":")[0] not in ("cpu", "cuda")]
        cases.setdefault(test, []).append("-".join(kept))
    yield from cases.items()
