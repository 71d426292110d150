"""`ringspan plugin check` runs the standard tests of what is installed, wherever it is called."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PLUGIN = """
from dataclasses import replace
from ringspan.contracts import Availability, DeviceInfo, Ordering, Permutation, hookimpl
import torch

class Backwards(Ordering):
    name = "backwards"
    def probe(self, device):
        return Availability.yes()
    def places(self, tokens, *, shards=1, weights=None, device="cpu"):
        return Permutation.from_tokens(torch.arange(tokens.N, device=device).flip(0))

class Shuffled(Backwards):
    name = "shuffled"
    def places(self, tokens, *, shards=1, weights=None, device="cpu"):
        return Permutation.from_tokens(torch.randperm(tokens.N, device=device))

class Elsewhere(Backwards):
    name = "elsewhere"
    def probe(self, device):
        return Availability.no("only on the abacus")

@hookimpl
def ringspan_orderings():
    return [Backwards(), Shuffled(), Elsewhere()]
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an installed plugin of three orderings, and one that does not load."""
    site = tmp_path_factory.mktemp("site")
    (site / "my_orderings.py").write_text(PLUGIN)
    (site / "wheel_less.py").write_text("raise RuntimeError('my wheels came off')")
    for name, module in (("mine", "my_orderings"), ("wheels", "wheel_less")):
        info = site / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[ringspan]\n{name} = {module}\n")
    return site


def run(
    site: Path, *arguments: str, cwd: Path | None = None, before: str = ""
) -> subprocess.CompletedProcess[str]:
    lines = [
        "import sys",
        f"sys.argv = {['ringspan', 'plugin', 'check', *arguments]!r}",
        f"sys.path.append({str(site)!r})",
        before,
        "from ringspan.cli import main",
        "main()",
    ]
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=cwd or site,
        env=os.environ | {"COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def rows(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, Any]]:
    return {row.get("name", row["plugin"]): row for row in json.loads(done.stdout)}


@pytest.fixture(scope="module")
def everything(site: Path) -> subprocess.CompletedProcess[str]:
    return run(site, "--json", "-k", "alone or permutation_lives or has_a_name")


def test_a_failure_ends_with_one_and_names_the_tests(
    everything: subprocess.CompletedProcess[str],
) -> None:
    assert everything.returncode == 1
    row = rows(everything)["shuffled"]
    assert row["state"] == "failed"
    assert any("follow_from_the_arguments_alone" in test for test in row["failed"])


def test_one_failure_does_not_stop_the_others(everything: subprocess.CompletedProcess[str]) -> None:
    row = rows(everything)["backwards"]
    assert (row["plugin"], row["kind"]) == ("mine", "ordering")
    assert row["failed"] == []
    assert row["passed"] > 0


def test_a_plugin_that_does_not_load_is_a_row_with_its_reason(
    everything: subprocess.CompletedProcess[str],
) -> None:
    row = rows(everything)["wheels"]
    assert row["state"] == "faulty"
    assert "my wheels came off" in row["remarks"][0]


def test_what_cannot_be_used_here_says_why_it_was_not_tested_there(
    everything: subprocess.CompletedProcess[str],
) -> None:
    row = rows(everything)["elsewhere"]
    assert "not usable on cpu: only on the abacus" in row["remarks"]


def test_a_name_is_that_of_a_provider_or_of_a_plugin(site: Path) -> None:
    assert set(rows(run(site, "backwards", "-k", "name", "--json"))) == {"backwards"}
    named = rows(run(site, "mine", "-k", "name", "--json"))
    assert set(named) == {"backwards", "shuffled", "elsewhere"}


def test_a_passing_provider_ends_with_zero_and_a_table(site: Path) -> None:
    done = run(site, "backwards")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mine" in done.stdout
    assert "ordering backwards" in done.stdout
    assert "passed" in done.stdout.splitlines()[-2]


def test_an_unknown_name_lists_the_known_ones(site: Path) -> None:
    done = run(site, "backward")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "name: expected one of backwards, elsewhere, " in done.stderr
    assert "shuffled" in done.stderr
    assert "got 'backward'" in done.stderr


def test_words_that_no_test_has_are_an_error(site: Path) -> None:
    done = run(site, "backwards", "-k", "no_such_test")
    assert done.returncode == 2
    assert "-k: expected words in the names of standard tests" in done.stderr


def test_what_pytest_finds_around_it_takes_no_part(site: Path, tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('not yours')\n")
    before = "import os; os.environ['PYTEST_ADDOPTS'] = '--no-such-option'"
    done = run(site, "backwards", cwd=tmp_path, before=before)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"pytest.ini", "conftest.py"}


@pytest.mark.parametrize("module", ["pytest", "hypothesis"])
def test_without_the_extra_it_says_which_to_install(site: Path, module: str) -> None:
    hidden = f"""
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == {module!r} else find_spec(name)
"""
    done = run(site, "backwards", before=hidden)
    assert done.returncode == 2
    assert f"no {module}" in done.stderr
    assert "pip install 'ringspan-core[testing]'" in done.stderr
