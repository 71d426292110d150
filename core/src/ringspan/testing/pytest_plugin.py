"""The pytest plugin of the conformance kit, loaded wherever pytest and Ringspan's core are.

It guards the standard tests of suites and reports what they found. A suite does not run without
it. It imports nothing of Ringspan before a test module has: others pay nothing for it.
"""

from __future__ import annotations

import sys
from collections import Counter, defaultdict
from typing import TYPE_CHECKING, Any, cast

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ringspan.testing.ranks import Ring
    from ringspan.testing.suites.base import Suite

__all__ = ["Verdict", "ringspan_rings", "ringspan_verdict", "verdict_of"]

pytest.register_assert_rewrite("ringspan.testing.suites")

VERDICT = "ringspan: verdict"
REPLACED = "ringspan: replaces the standard test"


class Verdict:
    """What a standard test found; kept with its report.

    Every problem is either served, and rightly, or refused with reasons. The report counts both.
    """

    def __init__(self, record: Callable[[str, object], None]) -> None:
        self._record = record
        self._seen: set[str] = set()

    def served(self) -> None:
        """The problem was served, and the result is right."""
        self._once("served")

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
def ringspan_verdict(record_property: Callable[[str, object], None]) -> Verdict:
    """Where a standard test says whether its problem was served or refused."""
    return Verdict(record_property)


@pytest.fixture(scope="class")
def ringspan_rings() -> Iterator[dict[tuple[int, str], Ring]]:
    """Rings of processes that stay up from one test of a class to the next.

    By world size and backend of the process group.
    """
    rings: dict[tuple[int, str], Ring] = {}
    yield rings
    for ring in rings.values():
        ring.close()


def pytest_pycollect_makeitem(collector: Any, name: str, obj: object) -> None:
    """Fails the collection of a suite that has lost a standard test without a reason."""
    suite = _suite(obj)
    if suite is None or not collector.istestclass(obj, name):
        return
    from ringspan.testing.suites.base import departures

    if silent := [each.name for each in departures(suite) if not each.reason]:
        raise collector.CollectError(
            f"{name}: standard tests are overridden or removed without a reason: "
            f"{', '.join(silent)}. Decorate the replacement with "
            '@ringspan.testing.replaces("why"), or assign ringspan.testing.omitted("why")'
        )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keeps the reason of a replaced test with its report; marks need one too."""
    suite = _suite(getattr(item, "cls", None))
    if suite is None or getattr(item, "originalname", None) not in suite.standard:
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
        terminalreporter.line(f"{suite}: {found['served']} served, {found['refused']} refused")
    for test, reason in replaced.items():
        terminalreporter.line(f"{test} replaces the standard test: {reason}")


def verdict_of(report: Any) -> str:
    """`"served"` where a test had anything to check, `"refused"` where it had not; else empty."""
    found = _properties(report, VERDICT)
    return ("served" if "served" in found else "refused") if found else ""


def _properties(report: Any, key: str) -> list[str]:
    return [str(value) for name, value in getattr(report, "user_properties", ()) if name == key]


def _suite(obj: object) -> type[Suite] | None:
    """`obj` if it is a suite; no suite can be there before their base is imported."""
    base = sys.modules.get("ringspan.testing.suites.base")
    found = base is not None and isinstance(obj, type) and issubclass(obj, base.Suite)
    return cast("type[Suite]", obj) if found else None


def _reason(mark: pytest.Mark) -> str:
    positional = mark.args[0] if mark.name == "skip" and mark.args else ""
    return str(mark.kwargs.get("reason") or positional).strip()
