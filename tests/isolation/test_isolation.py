"""The isolation that each distribution is tested in."""

from __future__ import annotations

from typing import TYPE_CHECKING
from zipfile import ZipFile

import pytest

from tests.isolation.guard import trespassers
from tests.isolation.run import build, members
from tests.isolation.workspace import Distribution, distribution, distributions

if TYPE_CHECKING:
    from pathlib import Path

PLUGINS = [found for found in distributions() if found.is_plugin]


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The names of the files in each distribution's wheel."""
    built = build(distributions(), tmp_path_factory.mktemp("wheels"))
    return {wheel.name.partition("-")[0]: ZipFile(wheel).namelist() for wheel in built}


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.key)
def test_a_plugin_has_only_core_and_the_registry_beside_it(plugin: Distribution) -> None:
    assert [found.key for found in members(plugin.key)] == ["registry", "core", plugin.key]


def test_core_has_only_the_registry_beside_it_and_the_registry_nothing() -> None:
    assert [found.key for found in members("core")] == ["registry", "core"]
    assert [found.key for found in members("registry")] == ["registry"]


def test_an_importable_neighbour_is_a_trespasser(tmp_path: Path) -> None:
    problems = trespassers(tmp_path, members("manual"))
    assert "ringspan_sdpa is importable" in problems
    assert "ringspan_manual is importable" not in problems


def test_a_distribution_from_elsewhere_is_a_trespasser(tmp_path: Path) -> None:
    problems = trespassers(tmp_path, distributions())
    assert any(problem.startswith("ringspan-core is installed in") for problem in problems)


def test_an_unknown_distribution_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SystemExit, match=r"expected one of registry, core, .*, got 'flash9'"):
        distribution("flash9")


@pytest.mark.parametrize("found", distributions(), ids=lambda found: found.key)
def test_a_wheel_holds_its_package_and_nothing_else(
    found: Distribution, wheels: dict[str, list[str]]
) -> None:
    stem = found.name.replace("-", "_")
    info = f"{stem}-{found.project['version']}.dist-info"
    roots = {name.partition("/")[0] for name in wheels[stem]}
    assert roots == ({info, found.package} if found.package else {info})
    if found.package:
        assert f"{found.package}/py.typed" in wheels[stem]
