"""The distributions of this repository, as their own `pyproject.toml` files describe them."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["ROOT", "Distribution", "distribution", "distributions"]

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Distribution:
    """One folder that builds one wheel.

    Attributes:
        key: what people call it: `registry`, `core`, `manual`, ... and `ringspan` for the root.
        name: the name in its metadata.
        folder: where its `pyproject.toml` lies.
        package: the import package it installs; the root installs none.
        project: its `[project]` table.
    """

    key: str
    name: str
    folder: Path
    package: str | None
    project: dict[str, Any]

    @property
    def is_plugin(self) -> bool:
        """Whether the registry finds it by entry point."""
        return "ringspan" in self.project.get("entry-points", {})

    @property
    def requirements(self) -> list[str]:
        """Everything its metadata asks for, extras included."""
        extras = self.project.get("optional-dependencies", {})
        return [*self.project["dependencies"], *(r for extra in extras.values() for r in extra)]


def distributions() -> list[Distribution]:
    """Every distribution: the registry, core, the plugins, and the root, which has no code."""
    plugins = sorted((path.parent for path in ROOT.glob("plugins/*/*/pyproject.toml")), key=str)
    return [_read(folder) for folder in (ROOT / "registry", ROOT / "core", *plugins, ROOT)]


def distribution(key: str) -> Distribution:
    """The distribution that people call `key`."""
    by_key = {found.key: found for found in distributions()}
    if key not in by_key:
        raise SystemExit(f"distribution: expected one of {', '.join(by_key)}, got {key!r}")
    return by_key[key]


def _read(folder: Path) -> Distribution:
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    packages = [path.parent.name for path in folder.glob("src/*/__init__.py")]
    return Distribution(
        key="ringspan" if folder == ROOT else folder.name,
        name=project["name"],
        folder=folder,
        package=packages[0] if packages else None,
        project=project,
    )
