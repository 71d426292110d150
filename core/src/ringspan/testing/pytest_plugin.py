"""The pytest plugin of the conformance kit, loaded wherever pytest and Ringspan's core are.

It guards the standard tests of suites and reports what they found. A suite does not run without
it. It imports nothing of Ringspan before a test module has: others pay nothing for it.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Verdict", "verdict", "verdict_of"]

pytest.register_assert_rewrite("ringspan.testing.suites")

VERDICT = "ringspan: verdict"
REPLACED = "ringspan: replaces the standard test"


class Verdict:
    """What a standard test found; kept with its report.

    Every problem is either computed exactly or refused with reasons, and the report counts both.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record
        self._seen: set[str] = set()

    def exact(self) -> None:
        """The problem was served, and the result is right."""
        self._once("exact")

    def refused(self, *reasons: str) -> None:
        """The provider declares that it does not serve the problem.

        Raises:
            AssertionError: a refusal without a reason that can be read.
        """
        assert reasons, "refused without a reason"
        for reason in reasons:
            assert isinstance(reason, str), f"a reason is text, got {reason!r}"
            assert reason.strip(), "refused with an empty reason"
        self._once(f"refused: {'; '.join(reasons)}")

    def _once(self, text: str) -> None:
        if text not in self._seen:
            self._seen.add(text)
            self._record(VERDICT, text)


@pytest.fixture
def verdict(record_property: Callable[[str, object], None]) -> Verdict:
    """Where a standard test says whether its problem was served or refused."""
    return Verdict(record_property)


def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> None:
    """Fails the collection of a suite that has lost a standard test without a reason."""
    if not _is_suite(obj) or not collector.istestclass(obj, name):
        return
    from ringspan.testing.suites.base import departures

    if silent := [each.name for each in departures(obj) if not each.reason]:
        raise collector.CollectError(
            f"{name}: standard tests are overridden or removed without a reason: "
            f"{', '.join(silent)}. Decorate the replacement with "
            '@ringspan.testing.replaces("why"), or assign ringspan.testing.omitted("why")'
        )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keeps the reason of a replaced test with its report; marks need one too."""
    suite = getattr(item, "cls", None)
    if not _is_suite(suite) or getattr(item, "originalname", None) not in suite.standard:
        return
    reason = getattr(getattr(item, "function", None), "replaces", "")
    if reason:
        item.user_properties.append((REPLACED, reason))
    for mark in item.iter_markers():
        if mark.name in {"skip", "skipif", "xfail"} and not _reason(mark):
            raise pytest.UsageError(f"{item.nodeid}: {mark.name} of a standard test needs a reason")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """How many problems each suite served and refused, and which standard tests it replaced."""
    verdicts: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for report in terminalreporter.stats.get("passed", ()):
        if kind := verdict_of(report):
            verdicts[report.nodeid.rpartition("::")[0]][kind] += 1
    replaced = {
        report.nodeid: reason
        for reports in terminalreporter.stats.values()
        for report in reports
        for reason in _properties(report, REPLACED)
    }
    if not verdicts and not replaced:
        return
    terminalreporter.section("conformance")
    for suite, found in verdicts.items():
        terminalreporter.line(f"{suite}: {found['exact']} exact, {found['refused']} refused")
    for test, reason in replaced.items():
        terminalreporter.line(f"{test} replaces the standard test: {reason}")


def verdict_of(report: Any) -> str:
    """`"exact"` where a test computed anything, `"refused"` where it did not; else empty."""
    found = _properties(report, VERDICT)
    return ("exact" if "exact" in found else "refused") if found else ""


def _properties(report: Any, key: str) -> list[str]:
    return [str(value) for name, value in getattr(report, "user_properties", ()) if name == key]


def _is_suite(obj: object) -> bool:
    base = sys.modules.get("ringspan.testing.suites.base")
    return base is not None and isinstance(obj, type) and issubclass(obj, base.Suite)


def _reason(mark: pytest.Mark) -> str:
    positional = mark.args[0] if mark.name == "skip" and mark.args else ""
    return str(mark.kwargs.get("reason") or positional).strip()

