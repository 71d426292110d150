"""Adds up the JUnit reports of a run into one line such as pytest prints.

`tox` runs pytest many times and ends with its own report; this line says how all of it went.

    python tests/summary.py .tox/reports --tox-status 0
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

__all__ = ["summarize"]

# A line that nobody scrolls back to is no help: the rest is in the reports and above.
_MOST_NAMED = 20


def summarize(folder: Path, tox_status: int) -> tuple[str, int]:
    """Returns the lines to print and the exit status.

    A check outside pytest (style, types, floors, an installation) that fails counts as one error,
    so that the line never looks better than the run.
    """
    counts: Counter[str] = Counter()
    broken: list[str] = []
    seconds = 0.0
    for report in sorted(folder.glob("*.xml")):
        for suite in ElementTree.parse(report).iter("testsuite"):
            seconds += float(suite.get("time", 0))
        for case in ElementTree.parse(report).iter("testcase"):
            outcome = _outcome(case)
            counts[outcome] += 1
            if outcome in ("failed", "error"):
                place = f"{case.get('classname')}::{case.get('name')}"
                broken.append(f"{outcome.upper()} {report.stem}: {place}")
    if tox_status and not broken:
        counts["error"] += 1
    order = ("failed", "passed", "skipped", "error")
    parts = [f"{counts[name]} {name}" for name in order if counts[name]] or ["no tests ran"]
    status = tox_status or int(bool(broken) or not counts["passed"])
    if (unnamed := len(broken) - _MOST_NAMED) > 0:
        broken[_MOST_NAMED:] = [f"... and {unnamed} more"]
    return "\n".join([*broken, f"{', '.join(parts)} in {seconds:.2f}s"]), status


def _outcome(case: ElementTree.Element) -> str:
    names = {"failure": "failed", "error": "error", "skipped": "skipped"}
    return next((names[child.tag] for child in case if child.tag in names), "passed")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tox-status", type=int, default=0)
    options = parser.parse_args()
    text, status = summarize(options.folder, options.tox_status)
    sys.stdout.write(f"{text}\n")
    sys.exit(status)
