"""Tests a distribution from its built wheel, with only core and the registry beside it.

    python -m tests.isolation.run manual                 its own tests
    python -m tests.isolation.run together -k ring       tests/, on the wheels of everything

Whatever follows the name goes to pytest. The interpreter must have the third-party packages and
pytest, but nothing of Ringspan: `tox` provides it (`tox -e shared`).
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.isolation.workspace import ROOT, Distribution, distribution, distributions

__all__ = ["build", "install", "members", "run"]

# These two install the README's way, into an environment of their own.
_ON_A_FRESH_INSTALL = ("test_install.py", "test_docs.py")


def members(key: str) -> list[Distribution]:
    """The distributions that are installed for the tests of `key`."""
    if key == "together":
        return distributions()
    return [distribution(name) for name in dict.fromkeys(("registry", *_above(key)))]


def build(chosen: list[Distribution], folder: Path) -> list[Path]:
    """Builds the wheels of `chosen` in `folder`, without fetching anything."""
    folders = [str(found.folder) for found in chosen]
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), *folders)
    return sorted(folder.glob("*.whl"))


def install(chosen: list[Distribution], target: Path) -> None:
    """Builds the wheels of `chosen` and unpacks them, without dependencies, into `target`."""
    with tempfile.TemporaryDirectory() as folder:
        wheels = [str(wheel) for wheel in build(chosen, Path(folder))]
        _pip("install", "--no-deps", "--no-index", "--target", str(target), *wheels)


def run(key: str, arguments: list[str]) -> int:
    """Runs the tests of `key` on its wheels; returns pytest's exit status."""
    chosen = members(key)
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder).resolve()
        install(chosen, target)
        guard = [
            "-p",
            "tests.isolation.guard",
            f"--isolated-in={target}",
            f"--isolated-keys={','.join(found.key for found in chosen)}",
        ]
        # `python -m` puts the repository's root, which holds no package of ours, on the path.
        command = [sys.executable, "-m", "pytest", *guard, *_tests(key), *arguments]
        return subprocess.run(command, cwd=ROOT, env=_environment(target), check=False).returncode


def _above(key: str) -> list[str]:
    return ["core", key] if distribution(key).is_plugin else [key]


def _tests(key: str) -> list[str]:
    if key != "together":
        return [str(distribution(key).folder / "tests")]
    tests = ROOT / "tests"
    return [str(tests), *(f"--ignore={tests / name}" for name in _ON_A_FRESH_INSTALL)]


def _environment(target: Path) -> dict[str, str]:
    scripts = [str(target / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]]
    return os.environ | {
        "PATH": os.pathsep.join(scripts),
        "PYTHONPATH": str(target),
        "PYTHONNOUSERSITE": "1",
    }


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--quiet", *arguments], check=True)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1], sys.argv[2:]))
