"""The line that says how a whole run of tox went."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.summary import summarize

if TYPE_CHECKING:
    from pathlib import Path

PASSED = '<testcase classname="tests.a" name="works" />'
SKIPPED = '<testcase classname="tests.a" name="rests"><skipped message="no GPU" /></testcase>'
FAILED = '<testcase classname="tests.a" name="breaks"><failure message="no">E</failure></testcase>'
ERROR = '<testcase classname="tests.a" name="stumbles"><error message="no">E</error></testcase>'


def report(folder: Path, name: str, *cases: str) -> None:
    body = "".join(cases)
    text = f'<testsuites><testsuite name="pytest" time="1.5">{body}</testsuite></testsuites>'
    (folder / f"{name}.xml").write_text(text)


def test_reports_add_up_to_one_line(tmp_path: Path) -> None:
    report(tmp_path, "core", PASSED, PASSED, SKIPPED)
    report(tmp_path, "manual", PASSED)
    assert summarize(tmp_path, 0) == ("3 passed, 1 skipped in 3.00s", 0)


def test_what_broke_is_named_with_its_environment(tmp_path: Path) -> None:
    report(tmp_path, "core", PASSED, FAILED)
    report(tmp_path, "manual", ERROR)
    text, status = summarize(tmp_path, 1)
    assert text.splitlines() == [
        "FAILED core: tests.a::breaks",
        "ERROR manual: tests.a::stumbles",
        "1 failed, 1 passed, 1 error in 3.00s",
    ]
    assert status == 1


def test_a_flood_of_failures_is_cut_short(tmp_path: Path) -> None:
    report(tmp_path, "core", *[FAILED] * 30)
    lines = summarize(tmp_path, 1)[0].splitlines()
    assert lines[-3:] == [
        "FAILED core: tests.a::breaks",
        "... and 10 more",
        "30 failed in 1.50s",
    ]
    assert len(lines) == 22


def test_a_check_outside_pytest_that_failed_counts_as_an_error(tmp_path: Path) -> None:
    report(tmp_path, "core", PASSED)
    assert summarize(tmp_path, 2) == ("1 passed, 1 error in 1.50s", 2)


@pytest.mark.parametrize("status", [0, 1])
def test_a_run_without_tests_is_no_success(tmp_path: Path, status: int) -> None:
    assert summarize(tmp_path, status)[1] == 1
