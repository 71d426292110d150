"""The support matrix says what backends declare, and claims nothing that was not measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from ringspan.testing import AttentionBackendSuite

from benchmarks.matrix import FEATURES, HEAD_DIMS, PAGE, RESULTS, rendered
from benchmarks.matrix import MASKS as MASK_QUESTIONS
from benchmarks.matrix_evidence import Results

STATE = re.compile(
    r"tested|CPU code|stand-in|(verified|\*\*failed\*\*) on [^;]+, torch [\d.]+"
    r"|(on [\w, ]+ )?refused \(\d+(, \d+)*\)"
)
MACHINE = {
    "note": "",
    "name": "NVIDIA H200",
    "compute_capability": [9, 0],
    "torch": "2.13.0+cu130",
}
MASKS = "test_every_mask_in_every_dtype_is_exact_or_refused"


def results(folder: Path, *backends: dict[str, Any], **machine: Any) -> Results:
    """What `make gpu` would have written."""
    record = {
        "machine": MACHINE | machine,
        "conformance": [{"kind": "backend", "state": "passed", **each} for each in backends],
    }
    (folder / "gpu").mkdir()
    (folder / "gpu" / "conformance.json").write_text(json.dumps(record))
    return Results.of(folder)


def table(page: str, title: str) -> dict[str, dict[str, str]]:
    """Cells of the table below a title, by backend and column."""
    lines = page.partition(f"# {title}\n")[2].split("\n#")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    columns = rows[0][1:]
    return {row[0].strip("`"): dict(zip(columns, row[1:], strict=True)) for row in rows[2:]}


def test_the_committed_page_is_what_the_generator_gives() -> None:
    remedy = "the backends or results changed: `python -m benchmarks.matrix` writes the page anew"
    assert PAGE.read_text() == rendered(), remedy


def test_every_cell_says_how_it_is_known_and_every_refusal_has_its_note() -> None:
    page = rendered()
    tables, _, rest = page.partition('## The order of "auto"')
    cells = [
        part
        for line in tables.splitlines()
        if line.startswith("| `")
        for cell in line.strip("|").split("|")[1:]
        for part in cell.strip().split("; ")
    ]
    assert cells
    assert [cell for cell in cells if not STATE.fullmatch(cell)] == []
    notes = set(re.findall(r"^(\d+)\. \S", rest.partition("## Notes")[2], flags=re.MULTILINE))
    numbers = {
        number
        for cell in cells
        for listed in re.findall(r"refused \(([\d, ]+)\)", cell)
        for number in listed.split(", ")
    }
    assert numbers == notes


def test_without_results_of_a_gpu_nothing_is_verified() -> None:
    page = rendered(Results())
    tables = page.partition("## Dtypes")[2]
    assert "verified" not in tables
    assert table(page, "bfloat16")["sdpa-flash"]["Hopper"] == "stand-in"
    assert table(page, "bfloat16")["manual"]["CPU"] == "tested"


def test_only_what_a_gpu_served_is_verified_and_only_on_its_architecture(tmp_path: Path) -> None:
    served = {MASKS: ["full-bfloat16", "causal-bfloat16"], "test_every_head_dim_is": ["64-full"]}
    found = results(tmp_path, {"name": "sdpa-flash", "served": served})
    page, verified = rendered(found), "verified on NVIDIA H200, torch 2.13.0"
    assert table(page, "bfloat16")["sdpa-flash"]["Hopper"] == verified
    assert table(page, "bfloat16")["sdpa-flash"]["Ampere"] == "stand-in"
    assert table(page, "float16")["sdpa-flash"]["Hopper"] == "stand-in"
    assert table(page, "bfloat16")["sdpa-cudnn"]["Hopper"] == "stand-in"
    assert table(page, "Masks")["sdpa-flash"]["causal"] == verified
    assert table(page, "Head dimensions")["sdpa-flash"]["64"] == verified
    assert table(page, "Head dimensions")["sdpa-flash"]["16"] == "stand-in"
    assert table(page, "Features")["sdpa-flash"]["GQA"] == "stand-in"


@pytest.mark.parametrize(
    "failure",
    [
        {"failed": [{"test": f"{MASKS}[cuda:0-full-bfloat16]", "what": "AssertionError"}]},
        {"state": "crashed", "unfinished": [f"{MASKS}[cuda:0-full-bfloat16]"]},
    ],
)
def test_a_failure_on_a_gpu_is_shown_whatever_else_passed(
    tmp_path: Path, failure: dict[str, Any]
) -> None:
    served = {MASKS: ["full-float16", "causal-bfloat16"]}
    found = results(tmp_path, {"name": "sdpa-flash", "served": served, **failure})
    page = rendered(found)
    failed = "**failed** on NVIDIA H200, torch 2.13.0"
    assert table(page, "bfloat16")["sdpa-flash"]["Hopper"] == failed
    assert table(page, "float16")["sdpa-flash"]["Hopper"].startswith("verified")


def test_a_run_of_the_harness_on_a_cpu_verifies_nothing(tmp_path: Path) -> None:
    served = {MASKS: ["full-bfloat16"]}
    backend = {"name": "sdpa-flash", "served": served}
    found = results(tmp_path, backend, note="not a GPU: a run on the CPU", compute_capability=None)
    assert rendered(found) == rendered(Results())


def test_what_speaks_of_a_column_are_standard_tests() -> None:
    standard = AttentionBackendSuite.standard
    for question in (*MASK_QUESTIONS, *HEAD_DIMS, *FEATURES):
        assert any(question.evidence.test in name for name in standard), question


def test_the_page_is_made_from_the_results_of_this_repository() -> None:
    assert rendered(Results.of(RESULTS)) == rendered()
