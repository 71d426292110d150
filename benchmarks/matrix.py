"""The page `docs/reference/backends.md`: which backend serves what, and how that is known.

python -m benchmarks.matrix      # writes it anew, from what is installed and benchmarks/results
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from ringspan.catalogue import catalogue
from ringspan.contracts import AttentionBackend, DeviceInfo, MaskCase, Problem, Task

from benchmarks.matrix_evidence import Evidence, Results, column_of

__all__ = ["PAGE", "RESULTS", "rendered"]

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "reference" / "backends.md"
RESULTS = ROOT / "benchmarks" / "results"

HEAD = """\
# Every backend on every GPU

<!-- Generated: `python -m benchmarks.matrix`; tests/test_support_matrix.py compares it. -->

Rows are backends; each table asks one question. A cell is what the backend declares, and how it is
known that this is so:

- **verified on** a GPU, with a version of torch: `make gpu` ran the conformance kit there with the
  real kernel, and its results are in [benchmarks/results](../../benchmarks/results).
- **failed on** a GPU: the same, and a standard test failed.
- **stand-in**: adapter tested against a stand-in for its kernel, on a CPU. The kernel itself was
  **not run on a GPU**.
- **CPU code**: the same code runs on a CPU, where the conformance kit tests it (`triton` by its
  interpreter). It was **not run on a GPU**.
- **tested**: the conformance kit tests it on a CPU, in every test run.
- **refused** (note): a call that names this backend raises before any work, for the reason in the
  note. The other way round, nothing that a backend does not refuse may be wrong.

A kernel that comes in a package of its own serves only where that package is installed and a tiny
call of it gives the right result: `ringspan doctor` says so of your machine.
"""
ORDER = """\
## The order of "auto"

The first backend that serves a call gets it. Here everything is installed, and the call is causal,
with head dimension 64 and gradients, in bfloat16 where the GPU has it. What refuses is left out.
"""
CAUSAL = MaskCase.CAUSAL
DTYPES = ("bfloat16", "float16", "float32", "float64")
CAPABILITIES = ((6, 0), (7, 0), (7, 5), (8, 0), (8, 9), (9, 0), (10, 0), (12, 0))
DEVICES = (
    DeviceInfo(type="cpu"),
    *(DeviceInfo(type="cuda", compute_capability=each) for each in CAPABILITIES),
)
BASE = Problem(device="cuda", dtype="bfloat16", mask=MaskCase.FULL, head_dim=64, value_head_dim=64)


@dataclass(frozen=True)
class Question:
    """One column: a problem, and the standard tests that speak of it."""

    title: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Fields of `Problem`."""
    evidence: Evidence = field(default_factory=Evidence)
    capability: str = ""
    """A field of `Capabilities` that says no where no problem can ask."""


MASKS = [
    *(Question(str(mask), {"mask": mask}, Evidence(word=str(mask))) for mask in MaskCase),
    Question("active blocks", {"blocks": True}, Evidence("test_block_sparse_work")),
    Question("ragged", {"ragged": True}, Evidence("test_tiles_of_many_lengths_in_one_call")),
]
HEAD_DIMS = [
    Question(
        str(dim),
        {"head_dim": dim, "value_head_dim": dim},
        Evidence("test_every_head_dim", str(dim)),
    )
    for dim in (16, 33, 64, 80, 96, 128, 192, 256, 512)
]
FEATURES = [
    Question("GQA", {"group_size": 3}, Evidence("test_shared_key_value_heads")),
    Question("Dv != D", {"value_head_dim": 72}, Evidence("test_values_of_another_head_dim")),
    Question("key padding", {"key_padding": True}, Evidence("test_masks_broadcast", "key padding")),
    Question("dropout", {"dropout": True}, Evidence("test_dropout")),
    Question("deterministic", {"deterministic": True}, Evidence("test_what_is_declared_determin")),
    Question("gradients", {"needs_backward": True}, Evidence("test_a_gradient_is_exact")),
    Question("whole branches", {}, Evidence("test_a_branch_is_exact"), capability="branches"),
    Question("gather", {"task": Task.GATHER}, Evidence("test_rows_of_several_tensors")),
    Question("merge", {"task": Task.MERGE}, Evidence("test_pieces_merge_by_their_lse")),
]


def rendered(results: Results | None = None) -> str:
    """The page."""
    matrix = Matrix(Results.of(RESULTS) if results is None else results, _backends())
    parts = [HEAD, "## Dtypes\n", "Full masks, head dimension 64, with gradients.\n"]
    for dtype in DTYPES:
        parts += [f"### {dtype}\n", *matrix.by_device(dtype), ""]
    parts += ["## Masks\n", *matrix.by_question("mask", MASKS), ""]
    parts += ["## Head dimensions\n", *matrix.by_question("head dimension", HEAD_DIMS), ""]
    parts += ["## Features\n", *matrix.by_question("feature", FEATURES), ""]
    parts += [ORDER, *matrix.order(), "", "## Notes\n", *matrix.listed_notes()]
    return "\n".join(parts) + "\n"


def _backends() -> list[AttentionBackend]:
    """Those of this repository's plugins, as they are installed.

    Raises:
        SystemExit: a plugin of this repository is not installed, or not in order.
    """
    files = sorted(ROOT.glob("plugins/backends/*/pyproject.toml"))
    projects = [tomllib.loads(file.read_text())["project"] for file in files]
    ours = {name for project in projects for name in project["entry-points"]["ringspan"]}
    records = {record.name: record for record in catalogue().plugins() if record.name in ours}
    if lost := sorted(ours - {name for name, record in records.items() if record.providers}):
        raise SystemExit(f"these plugins are not installed, or not in order: {', '.join(lost)}")
    found = [
        cast("AttentionBackend", catalogue().provider(kind, name))
        for record in records.values()
        for kind, name in record.providers
    ]
    hopper = DEVICES[CAPABILITIES.index((9, 0)) + 1]
    return sorted(found, key=lambda each: (-each.priority(hopper), each.name))


@dataclass
class Matrix:
    """All tables, and the notes that they share."""

    results: Results
    backends: list[AttentionBackend]
    notes: dict[str, int] = field(default_factory=dict)

    def by_device(self, dtype: str) -> Iterator[str]:
        """A dtype on every device."""
        yield _header("backend", [column_of(device) for device in DEVICES])
        for backend in self.backends:
            cells = [self._on(backend, dtype, device) for device in DEVICES]
            yield _row(backend, cells)

    def _on(self, backend: AttentionBackend, dtype: str, device: DeviceInfo) -> str:
        question = Question(dtype, {"dtype": dtype}, Evidence(word=dtype))
        if reasons := _reasons(backend, question, device):
            return self._refused(reasons)
        return self._served(backend, [column_of(device)], question)

    def by_question(self, title: str, questions: list[Question]) -> Iterator[str]:
        """Problems on all devices that the backend serves at all, in the dtype it serves there."""
        yield _header(title, [question.title for question in questions])
        for backend in self.backends:
            yield _row(backend, [self._anywhere(backend, question) for question in questions])

    def _anywhere(self, backend: AttentionBackend, question: Question) -> str:
        against = {
            column_of(device): _reasons(backend, replace_dtype(question, dtype), device)
            for device, dtype in _homes(backend)
        }
        if not against:
            return "nowhere"
        served = [column for column, reasons in against.items() if not reasons]
        if not served:
            return self._refused(_joined(against.values()))
        said = self._served(backend, served, question)
        if len(served) == len(against):
            return said
        where = [column for column, reasons in against.items() if reasons]
        return f"{said}; on {', '.join(where)} {self._refused(_joined(against.values()))}"

    def _served(self, backend: AttentionBackend, columns: list[str], question: Question) -> str:
        if said := self.results.cell(backend.name, columns, question.evidence):
            return said
        if columns == ["CPU"]:
            return "tested"
        return "CPU code" if "cpu" in backend.capabilities.devices else "stand-in"

    def _refused(self, reasons: list[str]) -> str:
        numbers = sorted(self.notes.setdefault(reason, len(self.notes) + 1) for reason in reasons)
        return f"refused ({', '.join(map(str, numbers))})"

    def order(self) -> Iterator[str]:
        """Names by priority."""
        yield _header("device", ["order"])
        for device in DEVICES:
            for dtype in DTYPES:
                asked = Question("", {"dtype": dtype, "mask": CAUSAL})
                able = [each for each in self.backends if not _reasons(each, asked, device)]
                if dtype == "float32" or len(able) > 1:
                    break
            able.sort(key=lambda each: -each.priority(device))
            names = ", ".join(f"`{each.name}`" for each in able)
            yield f"| {column_of(device)} ({dtype}) | {names} |"

    def listed_notes(self) -> list[str]:
        """What the numbers of refusals stand for."""
        return [f"{number}. {reason}" for reason, number in self.notes.items()]


def replace_dtype(question: Question, dtype: str) -> Question:
    """The same question in a dtype."""
    return replace(question, changes={"dtype": dtype, **question.changes})


def _homes(backend: AttentionBackend) -> Iterator[tuple[DeviceInfo, str]]:
    """GPUs on which a backend serves anything, or else the CPU; with its first dtype there."""
    found = [
        (device, dtype)
        for device in DEVICES
        for dtype in DTYPES
        if not _reasons(backend, Question("", {"dtype": dtype}), device)
    ]
    on_gpus = [home for home in found if home[0].type == "cuda"]
    seen = set()
    for device, dtype in on_gpus or found:
        if column_of(device) not in seen:
            seen.add(column_of(device))
            yield device, dtype


def _reasons(backend: AttentionBackend, question: Question, device: DeviceInfo) -> list[str]:
    if question.capability and not getattr(backend.capabilities, question.capability):
        return [f"{question.title} (supported: tiles)"]
    changes: dict[str, Any] = {"device": device.type, "device_info": device, **question.changes}
    problem = replace(BASE, **changes)
    return _joined([[_general(reason) for reason in backend.reasons_against(problem)]])


def _general(reason: str) -> str:
    """A declared limit without the value that oversteps it, which the cell itself says."""
    found = re.fullmatch(
        r"(compute capability|device|dtype|mask|task|(?:value_)?head_dim) \S+ (\(supported.*\))",
        reason,
    )
    if found:
        return f"{found[1].removeprefix('value_')} {found[2]}"
    return re.sub(r"on compute capability \d+\.\d+", "on this GPU", reason)


def _joined(lists: Any) -> list[str]:
    return list(dict.fromkeys(reason for reasons in lists for reason in reasons))


def _header(title: str, columns: list[str]) -> str:
    return f"| {title} | {' | '.join(columns)} |\n|---|{'---|' * len(columns)}"


def _row(backend: AttentionBackend, cells: list[str]) -> str:
    return f"| `{backend.name}` | {' | '.join(cells)} |"


if __name__ == "__main__":
    PAGE.write_text(rendered())
