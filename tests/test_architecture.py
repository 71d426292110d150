"""The house stays as drawn: floors, distributions and tools that know all of them."""

from __future__ import annotations

import configparser
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.isolation.workspace import ROOT, Distribution, distribution, distributions

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS: list[dict[str, Any]] = SETTINGS["tool"]["importlinter"]["contracts"]
PLUGINS = {found.package for found in distributions() if found.is_plugin}
THIRD_PARTY = [
    (found.name, requirement)
    for found in distributions()
    for requirement in found.requirements
    if not requirement.startswith("ringspan-")
    # Kernels need a GPU, a build or both; the adapters' tests bring stand-ins.
    and requirement not in found.project.get("optional-dependencies", {}).get("kernel", [])
]
everywhere = pytest.mark.parametrize("found", distributions(), ids=lambda found: found.key)


def contract(name: str) -> dict[str, Any]:
    """The import contract of that name."""
    return next(found for found in CONTRACTS if found["name"] == name)


def test_the_import_contracts_name_every_package() -> None:
    packages = {found.package for found in distributions() if found.package}
    alone = contract("Plugins stand on the contracts alone")
    closed = contract("Plugins do not use the front door")
    assert set(SETTINGS["tool"]["importlinter"]["root_packages"]) == packages
    assert set(alone["source_modules"]) == PLUGINS
    assert set(closed["source_modules"]) == PLUGINS | {f"{name}.**" for name in PLUGINS}
    assert set(contract("Plugins know nothing of each other")["modules"]) == PLUGINS
    assert set(contract("Core never imports a plugin")["forbidden_modules"]) == PLUGINS


def test_every_room_of_core_but_the_contracts_is_closed_to_plugins() -> None:
    rooms = {
        f"ringspan.{path.stem}"
        for path in (ROOT / "core/src/ringspan").iterdir()
        if path.stem != "__init__" and (path.suffix == ".py" or (path / "__init__.py").exists())
    }
    closed = set(contract("Plugins stand on the contracts alone")["forbidden_modules"])
    assert closed - {"ringspan_registry"} == rooms - {"ringspan.contracts"}


def test_importing_the_contracts_loads_no_other_floor() -> None:
    code = """
import sys, ringspan.contracts
rooms = {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("ringspan.")}
print(*rooms)
"""
    loaded = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    assert loaded == ["ringspan.contracts"]


def test_every_distribution_has_its_own_tox_environment() -> None:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini")
    listed = tox["tox"]["env_list"].split()
    assert {found.key for found in distributions() if found.package} <= set(listed)


@everywhere
def test_all_distributions_share_a_version_a_license_and_a_python(found: Distribution) -> None:
    root = distribution("ringspan").project
    for key in ("version", "license", "requires-python"):
        assert found.project[key] == root[key]


@everywhere
def test_distributions_pin_each_other_to_their_own_version(found: Distribution) -> None:
    ours = [requirement for requirement in found.requirements if requirement.startswith("ringspan")]
    assert all(requirement.endswith(f"=={found.project['version']}") for requirement in ours)


def test_the_root_distribution_brings_every_other_one() -> None:
    wanted = {found.name for found in distributions()} - {"ringspan"}
    named = {requirement.partition("=")[0] for requirement in distribution("ringspan").requirements}
    assert {name.partition("[")[0] for name in named} == wanted


@pytest.mark.parametrize("found", [d for d in distributions() if d.is_plugin], ids=lambda d: d.key)
def test_a_plugin_needs_core_and_is_found_by_its_own_name(found: Distribution) -> None:
    assert f"ringspan-core=={found.project['version']}" in found.project["dependencies"]
    assert found.project["entry-points"] == {"ringspan": {found.key: found.package}}


@everywhere
def test_tools_are_configured_once_for_all(found: Distribution) -> None:
    if found.folder != ROOT:
        settings = tomllib.loads((found.folder / "pyproject.toml").read_text())
        assert set(settings["tool"]) == {"hatch"}


@pytest.mark.parametrize(("name", "requirement"), THIRD_PARTY, ids=" ".join)
def test_the_shared_environment_has_what_each_distribution_asks_for(
    name: str, requirement: str
) -> None:
    groups = SETTINGS["dependency-groups"]
    assert requirement in [*groups["runtime"], *groups["test"]]


def test_the_torch_pin_stays_out_of_package_metadata() -> None:
    assert "torch==" in (ROOT / "constraints.txt").read_text()
    assert "torch>=2.11" in distribution("core").requirements


@pytest.mark.parametrize(
    ("place", "statement", "broken"),
    [
        ("ringspan_registry", "import ringspan.contracts", "The registry knows nothing"),
        ("ringspan_manual", "import ringspan.engine", "Plugins stand on the contracts"),
        ("ringspan_manual", "import ringspan", "Plugins do not use the front door"),
        ("ringspan_manual", "import ringspan_sdpa", "Plugins know nothing of each other"),
        ("ringspan/contracts", "import ringspan.engine", "imports only ever go down"),
        ("ringspan/contracts", "import ringspan_sdpa", "Core never imports a plugin"),
    ],
)
def test_the_linter_sees_an_import_that_goes_up(
    tmp_path: Path, place: str, statement: str, broken: str
) -> None:
    for package in SETTINGS["tool"]["importlinter"]["root_packages"]:
        spec = find_spec(package)
        assert spec is not None
        assert spec.origin is not None
        _skeleton(Path(spec.origin).parent, tmp_path / package)
    (tmp_path / place / "intruder.py").write_text(f"{statement}\n")
    linter = Path(sys.executable).parent / "lint-imports"
    report = subprocess.run(
        [linter, "--no-cache", "--config", ROOT / "pyproject.toml"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        check=False,
    )
    verdicts = [line for line in report.stdout.splitlines() if broken in line]
    assert any("BROKEN" in line for line in verdicts), report.stdout + report.stderr


def _skeleton(package: Path, copy: Path) -> None:
    """Copies the tree of modules, empty: only the intruder's import is there to be found."""
    for path in package.rglob("*.py"):
        empty = copy / path.relative_to(package)
        empty.parent.mkdir(parents=True, exist_ok=True)
        empty.touch()
