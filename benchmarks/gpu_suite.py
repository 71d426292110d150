"""The standard tests of one provider on one device, each written down as it ends.

    python benchmarks/gpu_suite.py KIND NAME RECORD [-k WORDS]

Runs in a process of its own: a kernel that breaks its CUDA context, or never returns, breaks this
process and nothing else, and what was found until then is in the file RECORD, a line per event.
`gpu_conformance.py` starts it and reads the lines.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

__all__ = ["Recorder"]

LONGEST = 2000
"""Characters of a failure that are kept."""


class Recorder:
    """A pytest plugin that writes what happens, test by test."""

    def __init__(self, record: Path) -> None:
        self._record = record

    def pytest_collection_finish(self, session: Any) -> None:
        self._write(collected=len(session.items))

    def pytest_runtest_logstart(self, nodeid: str, location: object) -> None:
        self._write(test=_test(nodeid), state="started")

    def pytest_runtest_logreport(self, report: Any) -> None:
        from ringspan.testing.pytest_plugin import verdict_of

        test = _test(report.nodeid)
        if report.failed:
            self._write(test=test, state="failed", what=str(report.longrepr)[-LONGEST:])
        elif report.skipped:
            reason = report.longrepr[2].removeprefix("Skipped: ")
            self._write(test=test, state="skipped", what=reason)
        elif report.when == "call":
            self._write(test=test, state=verdict_of(report) or "passed")

    def _write(self, **event: object) -> None:
        with self._record.open("a") as file:
            file.write(json.dumps(event) + "\n")


def _test(nodeid: str) -> str:
    return nodeid.rpartition("::")[2] if "[" not in nodeid else nodeid.split("::", 2)[2]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("kind", choices=("backend", "communicator"))
    parser.add_argument("name")
    parser.add_argument("record", type=Path)
    parser.add_argument("-k", dest="select", default="")
    options = parser.parse_args()
    return _run(options.kind, options.name, options.record, options.select)


def _run(kind: str, name: str, record: Path, select: str) -> int:
    import pytest
    from ringspan.catalogue import catalogue
    from ringspan.testing.suites import check

    if (kind, name) == ("communicator", "nccl"):
        check.SUITES["communicator"] = _over_nccl()
    provider = catalogue().provider(kind, name)
    check.being_checked.set([check.Offered("", kind, name, provider)])
    # Nothing that is configured around it takes part.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    os.environ["PYTEST_ADDOPTS"] = os.environ["PYTEST_PLUGINS"] = ""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = str(Path(folder) / "hypothesis")
        settings = Path(folder) / "pytest.ini"
        settings.write_text("[pytest]\n")
        arguments = [
            str(Path(check.__file__).with_name("installed.py")),
            f"--config-file={settings}",
            f"--rootdir={folder}",
            f"--basetemp={Path(folder) / 'files'}",
            "--import-mode=importlib",
            "--noconftest",
            "--tb=short",
            "-q",
            "-p",
            "no:cacheprovider",
            *(["-k", select] if select else []),
        ]
        return pytest.main(arguments, [pytest_plugin(), Recorder(record)])


def pytest_plugin() -> Any:
    """The kit's own, which autoload would have found."""
    from ringspan.testing import pytest_plugin

    return pytest_plugin


def _over_nccl() -> Any:
    """The suite of communicators, on process groups that NCCL serves."""
    from ringspan.testing import CommunicatorSuite

    class OverNccl(CommunicatorSuite):
        process_group = "cpu:gloo,cuda:nccl"

    return OverNccl


if __name__ == "__main__":
    sys.exit(main())
