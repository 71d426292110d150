"""Nobody drops a standard test in silence, and a suite does not run unguarded."""

from __future__ import annotations

import subprocess
import sys

import pytest
from ringspan.errors import InvalidArgument
from ringspan.testing import omitted, replaces

pytest_plugins = ["pytester"]

SUITE = """
import pytest
from ringspan.contracts import Availability, Ordering, Permutation
from ringspan.testing import OrderingSuite, omitted, replaces
import torch

class Mine(Ordering):
    name = "mine"
    def probe(self, device):
        return Availability.yes()
    def places(self, tokens, *, shards=1, weights=None, device="cpu"):
        return Permutation.from_tokens(torch.arange(tokens.N, device=device))

class TestMine(OrderingSuite):
    @pytest.fixture
    def ordering(self):
        return Mine()
"""


def run(pytester: pytest.Pytester, more: str, *options: str) -> pytest.RunResult:
    """A suite in a file of its own; `more` goes on in its class."""
    pytester.makepyfile(test_mine=SUITE + more)
    # What harms the published class must not harm this process's.
    run = pytester.runpytest_subprocess if "OrderingSuite." in more else pytester.runpytest
    return run("-q", *options)


@pytest.mark.parametrize(
    "more",
    [
        "    def test_some_tokens_are_ordered(self): pass",
        "    test_some_tokens_are_ordered = None",
        "    test_some_tokens_are_ordered = lambda self: None",
        "    def test_some_tokens_are_ordered(self): pass\n"
        "    test_some_tokens_are_ordered.__test__ = False",
        "TestMine.test_some_tokens_are_ordered = None",
        "del OrderingSuite.test_some_tokens_are_ordered",
        "OrderingSuite.test_some_tokens_are_ordered = lambda self: None",
    ],
)
def test_a_standard_test_that_is_gone_without_a_reason_fails_the_collection(
    pytester: pytest.Pytester, more: str
) -> None:
    result = run(pytester, more)
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*TestMine: standard tests are overridden or removed without a reason: "
         "test_some_tokens_are_ordered. Decorate the replacement with*"]
    )  # fmt: skip


def test_a_replacement_with_a_reason_runs_and_the_report_shows_it(
    pytester: pytest.Pytester,
) -> None:
    more = """
    @replaces("mine orders nothing but 64 tokens")
    def test_some_tokens_are_ordered(self, ordering):
        pass
"""
    result = run(pytester, more, "-k", "some_tokens")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["test_mine.py::TestMine::test_some_tokens_are_ordered replaces the standard test: "
         "mine orders nothing but 64 tokens"]
    )  # fmt: skip


def test_an_omitted_test_is_skipped_and_the_report_shows_why(pytester: pytest.Pytester) -> None:
    more = '    test_some_tokens_are_ordered = omitted("takes a week")'
    result = run(pytester, more, "-k", "some_tokens")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["*replaces the standard test: takes a week"])


@pytest.mark.parametrize("mark", ["skip", "skipif(True)", "xfail", 'skip(reason=" ")'])
def test_a_mark_that_skips_standard_tests_needs_a_reason(
    pytester: pytest.Pytester, mark: str
) -> None:
    result = run(pytester, f"    pytestmark = pytest.mark.{mark}")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*of a standard test needs a reason"])


def test_a_mark_with_a_reason_is_taken(pytester: pytest.Pytester) -> None:
    result = run(pytester, '    pytestmark = pytest.mark.skip("no licence here")')
    assert result.ret == pytest.ExitCode.OK


def test_the_report_counts_what_was_served_and_what_was_refused(pytester: pytest.Pytester) -> None:
    result = run(pytester, "")
    assert result.ret == pytest.ExitCode.OK
    result.stdout.fnmatch_lines(["test_mine.py::TestMine: 22 served, 0 refused"])


def test_a_suite_without_its_fixture_says_which(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        "from ringspan.testing import OrderingSuite\nclass TestMine(OrderingSuite): pass"
    )
    pytester.runpytest("-q").stdout.fnmatch_lines(["*TestMine needs a fixture `ordering`"])


def test_a_suite_does_not_run_without_the_plugin(pytester: pytest.Pytester) -> None:
    result = run(pytester, "", "-p", "no:ringspan", "-k", "every_kind")
    result.stdout.fnmatch_lines(["*fixture 'ringspan_verdict' not found"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


@pytest.mark.parametrize("reason", ["", "  ", None])
def test_a_reason_has_words(reason: str) -> None:
    with pytest.raises(InvalidArgument, match="why the standard test does not fit"):
        replaces(reason)
    with pytest.raises(InvalidArgument, match="why the standard test does not fit"):
        omitted(reason)


def test_the_plugin_costs_other_users_of_pytest_no_torch() -> None:
    code = "import sys, ringspan.testing.pytest_plugin; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_without_pytest_a_suite_names_the_extra() -> None:
    code = "import sys; sys.modules['pytest'] = None\nfrom ringspan.testing import OrderingSuite"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ringspan.testing.OrderingSuite: expected pytest" in done.stderr
    assert "pip install 'ringspan-core[testing]'" in done.stderr


def test_without_pytest_the_formula_is_there() -> None:
    code = "import sys; sys.modules['pytest'] = None\nfrom ringspan.testing import assert_exact"
    subprocess.run([sys.executable, "-c", code], check=True)
