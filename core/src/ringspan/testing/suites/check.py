"""Runs the suite of any provider, outside of any repository."""

from __future__ import annotations

import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ringspan.contracts import Communicator, InvalidArgument, Provider, RingspanError
from ringspan.testing.pytest_plugin import verdict_of
from ringspan.testing.suites.attention_backend import AttentionBackendSuite
from ringspan.testing.suites.base import Suite
from ringspan.testing.suites.communicator import CommunicatorSuite
from ringspan.testing.suites.ordering import OrderingSuite
from ringspan.testing.suites.virtual_communicator import VirtualCommunicatorSuite

__all__ = ["Checked", "Offered", "being_checked", "check", "suite_of"]

SUITES: dict[str, type[Suite]] = {
    "backend": AttentionBackendSuite,
    "ordering": OrderingSuite,
    "communicator": CommunicatorSuite,
}


@dataclass(frozen=True, slots=True)
class Offered:
    """A provider, and where it comes from."""

    plugin: str
    kind: str
    name: str
    provider: Provider

    @property
    def title(self) -> str:
        """The name of its suite in reports."""
        return f"Test {self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Checked:
    """What its suite found."""

    offered: Offered
    passed: int
    failed: tuple[str, ...]
    """The tests that failed."""
    skipped: tuple[str, ...]
    """The reasons for which tests did not run, each once."""
    served: int
    """Passed tests in which it had something to do."""
    refused: int
    """Passed tests of a refusal."""

    @property
    def state(self) -> str:
        """`failed`, `passed`, or `not run` where nothing that it does could be tested."""
        if self.failed:
            return "failed"
        return "passed" if self.served else "not run"


being_checked: ContextVar[Sequence[Offered]] = ContextVar("being_checked", default=())
"""What `ringspan.testing.suites.installed` makes suites of."""


def suite_of(offered: Offered) -> type[Suite]:
    """The suite of a provider's kind, with that provider in its fixture."""

    @pytest.fixture
    def under_test(self: Suite) -> Provider:
        return offered.provider

    suite = SUITES[offered.kind]
    if isinstance(offered.provider, Communicator) and offered.provider.virtual:
        suite = VirtualCommunicatorSuite
    return type(offered.title, (suite,), {offered.kind: under_test})


def check(everything: Sequence[Offered], *, select: str = "", quiet: bool = False) -> list[Checked]:
    """Runs the suite of each provider with pytest, which prints its progress unless `quiet`.

    Neither settings of pytest nor plugins or conftest files of where it is called take part.

    Args:
        everything: the providers.
        select: which tests, as for pytest's `-k`; empty: all.
        quiet: whether nothing is printed.

    Raises:
        InvalidArgument: no test matches `select`.
        RingspanError: pytest could not run.
    """
    ledger = _Ledger()
    token = being_checked.set(everything)
    try:
        with _alone() as options:
            options += ["-k", select] if select else []
            options += ["-p", "no:terminal"] if quiet else ["-q", "--no-header", "--tb=short"]
            code = pytest.main(options, plugins=[_PLUGIN, ledger])
    finally:
        being_checked.reset(token)
        # Read anew the next time: it holds the suites of these providers.
        sys.modules.pop("ringspan.testing.suites.installed", None)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise InvalidArgument(
            "-k", expected="words in the names of standard tests", got=repr(select)
        )
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RingspanError("plugin check", expected="pytest to run", got=f"its exit code {code:d}")
    return [ledger.checked(offered) for offered in everything]


_PLUGIN = "ringspan.testing.pytest_plugin"


@contextmanager
def _alone() -> Iterator[list[str]]:
    """Options of pytest that leave out whatever is configured around it."""
    with tempfile.TemporaryDirectory() as folder:
        ours = {
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_ADDOPTS": "",
            "PYTEST_PLUGINS": "",
            "HYPOTHESIS_STORAGE_DIRECTORY": str(Path(folder) / "hypothesis"),
        }
        settings = Path(folder) / "pytest.ini"
        settings.write_text("[pytest]\n")
        with mock.patch.dict(os.environ, ours):
            yield [
                str(Path(__file__).with_name("installed.py")),
                f"--config-file={settings}",
                f"--rootdir={folder}",
                f"--basetemp={Path(folder) / 'files'}",
                "--import-mode=importlib",
                "--noconftest",
                "-p",
                "no:cacheprovider",
            ]


class _Ledger:
    """A pytest plugin that keeps what happened, by suite."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[str, str]] = Counter()
        self._failed: dict[tuple[str, str], None] = {}
        self._skipped: dict[tuple[str, str], None] = {}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Every phase of every test comes by here."""
        _, suite, test = report.nodeid.split("::", 2)
        if report.failed:
            self._failed[suite, test] = None
        elif report.skipped:
            self._skipped[suite, report.longrepr[2].removeprefix("Skipped: ")] = None
        elif report.when == "call":
            self._counts[suite, "passed"] += 1
            self._counts[suite, verdict_of(report)] += 1

    def checked(self, offered: Offered) -> Checked:
        """What came by of one suite."""
        title = offered.title
        return Checked(
            offered,
            passed=self._counts[title, "passed"],
            failed=tuple(test for suite, test in self._failed if suite == title),
            skipped=tuple(reason for suite, reason in self._skipped if suite == title),
            served=self._counts[title, "served"],
            refused=self._counts[title, "refused"],
        )
