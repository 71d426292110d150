"""The reference of the conformance kit names every standard test, with what it asks."""

from __future__ import annotations

import inspect
import re

import pytest
from ringspan.testing import (
    AttentionBackendSuite,
    CommunicatorSuite,
    CudaAdapterSuite,
    GeometricOrderingSuite,
    OrderingSuite,
    VirtualCommunicatorSuite,
)
from ringspan.testing.suites.base import Suite
from ringspan.testing.suites.provider import ProviderSuite

from tests.isolation.workspace import ROOT

PAGE = ROOT / "docs/reference/conformance.md"
SUITES: dict[str, type[Suite]] = {
    "Providers of every kind": ProviderSuite,
    "AttentionBackendSuite": AttentionBackendSuite,
    "CudaAdapterSuite": CudaAdapterSuite,
    "OrderingSuite": OrderingSuite,
    "GeometricOrderingSuite": GeometricOrderingSuite,
    "CommunicatorSuite": CommunicatorSuite,
    "VirtualCommunicatorSuite": VirtualCommunicatorSuite,
}


def rows(suite: type[Suite]) -> list[str]:
    """One row of a table for each standard test that `suite` adds."""
    others = [other for other in SUITES.values() if other is not suite and issubclass(suite, other)]
    inherited = {name for other in others for name in other.standard}
    return [
        f"| `{name}` | {(inspect.getdoc(test) or '').partition(chr(10))[0]} |"
        for name, test in suite.standard.items()
        if name not in inherited
    ]


@pytest.mark.parametrize(("title", "suite"), SUITES.items(), ids=SUITES)
def test_the_page_names_every_standard_test(title: str, suite: type[Suite]) -> None:
    chapters = re.split(r"^## `?([^`\n]+)`?$", PAGE.read_text(), flags=re.MULTILINE)
    chapter = dict(zip(chapters[1::2], chapters[2::2], strict=True))[title]
    assert [line for line in chapter.splitlines() if line.startswith("| `test_")] == rows(suite)
