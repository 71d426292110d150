"""A pytest plugin that refuses to test anything but the wheels under test.

A test suite that passes because a neighbour happens to be importable, or because the source tree
shadows the wheel, proves nothing about what users install. So the check runs in the very processes
that run the tests, before them and after them.
"""

from __future__ import annotations

import sys
from importlib.metadata import distributions as installed
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.isolation.workspace import Distribution, distribution, distributions

if TYPE_CHECKING:
    from collections.abc import Iterator


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("isolation")
    group.addoption("--isolated-in", type=Path, help="the folder that holds the wheels under test")
    group.addoption("--isolated-keys", type=_split, help="the distributions that are in it")


def pytest_configure(config: pytest.Config) -> None:
    target, members = _isolation(config)
    if problems := trespassers(target, members):
        raise pytest.UsageError("the tests are not isolated: " + "; ".join(problems))


@pytest.fixture(scope="session", autouse=True)
def nothing_came_from_elsewhere(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    target, _ = _isolation(request.config)
    packages = {found.package for found in distributions()}
    files = {
        name: Path(module.__file__)
        for name, module in list(sys.modules.items())
        if name.partition(".")[0] in packages and module.__file__ is not None
    }
    strangers = {name: file for name, file in files.items() if target not in file.parents}
    assert not strangers, f"imported from outside {target}: {strangers}"


def trespassers(target: Path, members: list[Distribution]) -> list[str]:
    """Says what is importable that should not be, is missing, or lies outside `target`."""
    here = {
        found.name: Path(str(found.locate_file(""))).resolve()
        for found in installed()
        if found.name.startswith("ringspan")
    }
    problems = [
        f"{name} is installed in {place}, expected {[m.name for m in members]} in {target}"
        for name, place in here.items()
        if place != target or name not in {member.name for member in members}
    ]
    problems += [f"{member.name} is missing" for member in members if member.name not in here]
    for found in distributions():
        if found.package is not None and found not in members and find_spec(found.package):
            problems.append(f"{found.package} is importable")
    return problems


def _isolation(config: pytest.Config) -> tuple[Path, list[Distribution]]:
    keys = config.getoption("isolated_keys")
    return config.getoption("isolated_in").resolve(), [distribution(key) for key in keys]


def _split(text: str) -> list[str]:
    return text.split(",")
