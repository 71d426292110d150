"""What the results of GPUs say of a cell of the support matrix."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ringspan.contracts import DeviceInfo

__all__ = ["Evidence", "Results", "column_of"]

MASKS = "test_every_mask_in_every_dtype_is_exact_or_refused"


@dataclass(frozen=True)
class Evidence:
    """Which standard tests speak of a cell: part of their name, and a word of their parameters."""

    test: str = MASKS
    word: str = ""

    def speaks(self, test: str, parameters: str) -> bool:
        return self.test in test and (not self.word or self.word in parameters.split("-"))


@dataclass(frozen=True)
class Run:
    """One file `conformance.json` of a GPU."""

    gpu: str
    torch: str
    column: str
    """The title of its architecture."""
    providers: dict[str, dict[str, Any]]

    def __str__(self) -> str:
        return f"{self.gpu}, torch {self.torch}"

    def says(self, backend: str, *evidence: Evidence) -> str:
        """`verified`, `failed`, or nothing where the tests that speak of it did not run."""
        record = self.providers.get(backend, {})
        if any(self._among(_failed(record), each) for each in evidence):
            return "failed"
        served = list(_served(record))
        return "verified" if all(self._among(served, each) for each in evidence) else ""

    @staticmethod
    def _among(tests: list[tuple[str, str]], evidence: Evidence) -> bool:
        return any(evidence.speaks(*test) for test in tests)


@dataclass(frozen=True)
class Results:
    """All runs on GPUs that a folder holds."""

    runs: list[Run] = field(default_factory=list)

    @classmethod
    def of(cls, folder: Path) -> Results:
        """Runs of the harness on a CPU say of themselves that they are none."""
        records = [
            json.loads(file.read_text()) for file in sorted(folder.glob("*/conformance.json"))
        ]
        return cls([_run(record) for record in records if not record["machine"]["note"]])

    def cell(self, backend: str, columns: list[str], *evidence: Evidence) -> str:
        """What is known of a backend on the GPUs of these columns; empty: nothing."""
        found = [(run.says(backend, *evidence), run) for run in self.runs if run.column in columns]
        said = [f"**{verdict}** on {run}" for verdict, run in found if verdict == "failed"]
        said += [f"{verdict} on {run}" for verdict, run in found if verdict == "verified"]
        return "; ".join(said)


def column_of(device: DeviceInfo) -> str:
    """The column of a device: its architecture, with Blackwell's two families apart."""
    capability = device.compute_capability
    if capability is None:
        return "CPU"
    name = device.architecture.capitalize()
    return f"{name} {'12' if capability[0] >= 12 else '10'}" if name == "Blackwell" else name


def _run(record: dict[str, Any]) -> Run:
    machine = record["machine"]
    capability: Any = tuple(machine["compute_capability"])
    device = DeviceInfo(type="cuda", compute_capability=capability)
    providers = {each["name"]: each for each in record["conformance"] if each["kind"] == "backend"}
    return Run(machine["name"], machine["torch"].partition("+")[0], column_of(device), providers)


def _served(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for test, cases in record.get("served", {}).items():
        yield from ((test, parameters) for parameters in cases)


def _failed(record: dict[str, Any]) -> list[tuple[str, str]]:
    tests = [failure["test"] for failure in record.get("failed", ())]
    tests += record.get("unfinished", ()) if record.get("state") == "crashed" else ()
    return [(name, rest.rstrip("]")) for name, _, rest in (test.partition("[") for test in tests)]
