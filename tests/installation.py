"""An environment such as a reader of the README gets: real pip, real dependencies."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.isolation.workspace import ROOT

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Installation", "make"]

# What would leak this run's own packages, or its make, into the reader's environment.
_PRIVATE = {"PYTHONPATH", "VIRTUAL_ENV", "MAKEFLAGS", "MAKELEVEL", "MFLAGS"}


@dataclass(frozen=True)
class Installation:
    """A virtual environment that `make install` filled."""

    venv: Path

    @property
    def environment(self) -> dict[str, str]:
        """The variables of a shell in which it is activated."""
        inherited = {name: value for name, value in os.environ.items() if name not in _PRIVATE}
        path = f"{self.venv / 'bin'}{os.pathsep}{inherited['PATH']}"
        return inherited | {"PATH": path, "VIRTUAL_ENV": str(self.venv)}

    def run(self, *command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
        """Runs a command there and returns what it printed; a failure shows all of it."""
        done = subprocess.run(
            command,
            cwd=cwd,
            env=self.environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}"
        return done


def make(venv: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs make with the Python that this one was made from, for the environment `venv`."""
    python = getattr(sys, "_base_executable", sys.executable)
    return Installation(venv).run("make", f"VENV={venv}", f"PYTHON={python}", *arguments)
