"""Makes this checkout importable, plugins and all, on a machine where nothing may be installed.

A throw-away folder goes to the front of `sys.path`. For each of our distributions it holds the
metadata by which plugins are found, read from its `pyproject.toml`, and the sources follow on the
path; or it holds what wheels of them hold. Kernels are extras of our plugins: a plugin is found
whether its kernel is there or not, and a wheel of one may lie in `.gpu-wheels` like any other.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["ROOT", "Unprepared", "prepare"]

ROOT = Path(__file__).resolve().parents[1]
THIRD_PARTY = ROOT / ".gpu-wheels"


class Unprepared(Exception):  # noqa: N818 - named for what is wrong with the machine
    """What this machine lacks, and how to bring it there."""


def prepare(site: Path, wheels: Path | None = None) -> None:
    """Fills the empty folder `site` and puts it, and our sources, in front of `sys.path`.

    Processes that are started afterwards find the same, by `PYTHONPATH`.

    Args:
        site: where metadata and unpacked wheels go.
        wheels: a folder with wheels of our distributions, to use instead of the sources.

    Raises:
        Unprepared: a dependency is neither installed nor in `.gpu-wheels`, or wheels do not fit.
    """
    projects = list(_projects())
    if wheels is None:
        for _, project in projects:
            _describe(project, site)
        sources = [str(folder / "src") for folder, _ in projects if (folder / "src").is_dir()]
    else:
        _unpack(wheels.glob("ringspan*.whl"), site, f"{wheels} holds no wheel of ringspan")
        sources = []
    needed = sorted(_dependencies(project for _, project in projects))
    if missing := _missing(needed):
        # All of them, not only those that are missing: they were chosen to fit each other.
        _unpack(THIRD_PARTY.glob("*.whl"), site, _remedy(missing, needed))
    elif others := [wheel for wheel in _brought() if not _is_installed(wheel.stem.split("-")[0])]:
        _unpack(others, site, "")
    found = [str(site), *sources]
    sys.path[:0] = found
    already = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([*found, *([already] if already else [])])
    importlib.invalidate_caches()
    if missing := _missing(needed):
        raise Unprepared(_remedy(missing, needed))


def _projects() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folder and `[project]` table of each distribution."""
    plugins = sorted(path.parent for path in ROOT.glob("plugins/*/*/pyproject.toml"))
    for folder in (ROOT / "registry", ROOT / "core", *plugins, ROOT):
        yield folder, tomllib.loads((folder / "pyproject.toml").read_text())["project"]


def _describe(project: dict[str, Any], site: Path) -> None:
    """Writes what `importlib.metadata` has to know of a distribution."""
    name, version = project["name"], project["version"]
    info = site / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    lines = []
    for group, entries in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{entry} = {target}" for entry, target in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def _dependencies(projects: Iterable[dict[str, Any]]) -> set[str]:
    """Names of what our distributions require from elsewhere, without extras."""
    names = {
        re.split(r"[^\w.-]", requirement)[0]
        for project in projects
        for requirement in project["dependencies"]
    }
    return {name for name in names if not name.startswith("ringspan")}


def _missing(names: Iterable[str]) -> list[str]:
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _brought() -> Iterator[Path]:
    """Wheels for this Python of what nothing here requires: pytest, and kernels."""
    return (wheel for wheel in sorted(THIRD_PARTY.glob("*.whl")) if _fits(wheel))


def _unpack(wheels: Iterable[Path], site: Path, if_none: str) -> None:
    """A wheel without a data folder, as all of these are, is a zip file of its packages."""
    found = sorted(wheels)
    if not found:
        raise Unprepared(if_none)
    for wheel in found:
        if not _fits(wheel):
            raise Unprepared(
                f"{wheel} is not for Python {sys.version_info[0]}.{sys.version_info[1]}"
            )
        with ZipFile(wheel) as archive:
            archive.extractall(site)


def _fits(wheel: Path) -> bool:
    pythons, abi, _ = wheel.stem.split("-")[-3:]
    ours = {"py3", f"cp{sys.version_info[0]}{sys.version_info[1]}"}
    return abi == "abi3" or not ours.isdisjoint(pythons.split("."))


def _remedy(missing: list[str], needed: list[str]) -> str:
    if "torch" in missing:
        return "needs torch, which is not installed"
    python = f"{sys.version_info[0]}.{sys.version_info[1]}"
    others = " ".join(name for name in needed if name not in ("torch", "numpy"))
    return (
        f"needs {', '.join(missing)}, which this Python lacks. Where there is a network, run\n"
        f"  python -m pip download --python-version {python} --only-binary=:all: "
        "--platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 "
        f"-d .gpu-wheels {others} pytest hypothesis\n"
        "in the root of the repository, and bring .gpu-wheels along with it"
    )
