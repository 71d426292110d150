"""Installing as the README and the Makefile say, with real dependency resolution."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.installation import Installation, make
from tests.isolation.workspace import ROOT, distributions

if TYPE_CHECKING:
    from pathlib import Path


def installed_by(text: str) -> set[str]:
    """What the one pip command in `text` installs, after a shell has put in names for `*`."""
    joined = text.replace("\\\n", " ")
    commands = re.findall(r"pip install (.*\./registry.*)$", joined, flags=re.MULTILINE)
    assert len(commands) == 1
    words = {word for word in shlex.split(commands[0]) if word.startswith(".")}
    patterns = {word for word in words if "*" in word}
    found = {f"./{path.relative_to(ROOT)}" for word in patterns for path in ROOT.glob(word)}
    return words - patterns | found


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """An environment with no packages at all."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    return venv


def pretend_torch(venv: Path, version: str) -> None:
    """Leaves what pip would leave of a torch of that version."""
    (site,) = venv.glob("lib/python*/site-packages")
    info = site / f"torch-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")


def test_the_makefile_and_the_readme_install_every_distribution(tmp_path: Path) -> None:
    folders = {
        "." if found.folder == ROOT else f"./{found.folder.relative_to(ROOT)}"
        for found in distributions()
    }
    by_make = installed_by(make(tmp_path / "absent", "--dry-run", "install").stdout)
    assert installed_by((ROOT / "README.md").read_text()) == by_make
    assert {argument.partition("[")[0] for argument in by_make} == folders


def test_a_fresh_environment_gets_the_pinned_torch(bare: Path) -> None:
    assert "--constraint constraints.txt" in make(bare, "--dry-run", "install").stdout


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cu128", "3.0.0a0"])
def test_a_torch_that_is_there_is_kept(bare: Path, version: str) -> None:
    pretend_torch(bare, version)
    assert "--constraint" not in make(bare, "--dry-run", "install").stdout


def test_a_torch_that_is_too_old_is_replaced(bare: Path) -> None:
    pretend_torch(bare, "2.10.1")
    assert "--constraint constraints.txt" in make(bare, "--dry-run", "install").stdout


def test_an_index_for_torch_can_be_chosen(bare: Path) -> None:
    index = "https://example.org/cpu"
    commands = make(bare, "--dry-run", "install", f"TORCH_INDEX={index}").stdout
    assert f"--extra-index-url {index}" in commands


def test_what_was_installed_is_consistent(installed: Installation) -> None:
    installed.run("python", "-m", "pip", "check")


def test_ringspan_can_be_imported_and_computes(installed: Installation, tmp_path: Path) -> None:
    code = """
import torch, ringspan as rs
q, k, v = torch.randn(3, 1, 64, 4, 16)
print(rs.attention(q, k, v, pattern=rs.Dilated((16, 64), (1, 4)), causal=True).shape)
"""
    assert "[1, 64, 4, 16]" in installed.run("python", "-c", code, cwd=tmp_path).stdout


def test_the_doctor_lists_every_plugin(installed: Installation, tmp_path: Path) -> None:
    report = installed.run("ringspan", "doctor", "--json", cwd=tmp_path).stdout
    listed = json.dumps(json.loads(report))
    for found in distributions():
        if found.is_plugin:
            assert found.name in listed


def test_installing_again_has_nothing_to_do(installed: Installation) -> None:
    assert "pip install" not in make(installed.venv, "install").stdout
