"""Modules where an adapter imports somebody else's package, and what pip lists of it."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest

__all__ = ["absent", "install", "listed", "unimportable"]


def install(
    monkeypatch: pytest.MonkeyPatch, modules: Mapping[str, Mapping[str, Any]]
) -> list[ModuleType]:
    """Puts modules of these contents where they are imported from, until the test ends.

    Args:
        modules: full name -> what the module holds; a package comes before its parts.

    Example:
        >>> package, kernel = install(monkeypatch, {"far": {}, "far.kernel": {"forward": forward}})
    """
    made = []
    for name, contents in modules.items():
        module = ModuleType(name)
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, name, module)
        made.append(module)
    return made


def absent(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """Hides a module and its parts, which may be installed where the test runs."""
    for name in list(sys.modules):
        if name.startswith(f"{module}."):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)


def unimportable(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Importing by name fails with `error`, as of a library that was built for another torch."""

    def fail(name: str) -> ModuleType:
        raise error

    monkeypatch.setattr(importlib, "import_module", fail)


def listed(monkeypatch: pytest.MonkeyPatch, distribution: str, version: str | None) -> None:
    """The version that pip lists for `distribution`; None: it is not installed."""
    others = importlib.metadata.version

    def answer(name: str) -> str:
        if name != distribution:
            return others(name)
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(importlib.metadata, "version", answer)
