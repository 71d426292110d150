"""Every command and every example in the documentation runs as printed.

In a Markdown file, each fenced block is run in the order of the file, in a folder that looks like
the repository, with everything installed:

- `python` blocks run as a script. One that starts with a comment such as `# ring.py` is saved
  under that name instead, for a later command to run.
- `sh` blocks run in a shell that stops at the first failure.
- A block under a comment `<!-- not run: reason -->` is not run.
"""

from __future__ import annotations

import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.isolation.workspace import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.installation import Installation

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>.+?) -->\s*\n)?"
    r"^```(?P<language>\w+)\n(?P<code>.*?)^```$",
    flags=re.MULTILINE | re.DOTALL,
)
# Shown to be right elsewhere: here it would only be repeated.
ELSEWHERE = {
    "git clone": "needs the network",
    "pip install -c": "tests/test_install.py installs exactly this",
    "make test": "runs this very test",
    "make gpu": "needs a GPU",
}
# The demo's own tests train to the target; here it must only start, finish and report.
QUICK = ["DEMO_ARGS=--steps 2 --context 512 --layers 2 --width 32 --heads 4"]


@dataclass(frozen=True)
class Block:
    """One fenced block of a page."""

    language: str
    code: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    return [
        Block(found["language"], found["code"], found["reason"])
        for found in BLOCK.finditer(page.read_text())
    ]


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with the repository's files, into which examples may write."""
    with tempfile.TemporaryDirectory() as name:
        for path in ROOT.iterdir():
            if not path.name.startswith("."):
                (Path(name) / path.name).symlink_to(path)
        yield Path(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_examples_of_a_page_run_as_printed(
    page: Path, installed: Installation, folder: Path
) -> None:
    for number, block in enumerate(blocks(page)):
        if block.reason is None:
            run(block, installed, folder, f"block_{number}.py")


def run(block: Block, installed: Installation, folder: Path, script: str) -> None:
    """Runs one block in `folder`; `script` is the file that an unnamed Python block becomes."""
    if block.language == "python":
        name = re.match(r"# (\S+\.py)\n", block.code)
        (folder / (name[1] if name else script)).write_text(block.code)
        if not name:
            installed.run("python", script, cwd=folder)
    elif block.language == "sh" and not any(command in block.code for command in ELSEWHERE):
        shell = ["bash", "-euo", "pipefail", "-c", block.code]
        installed.run("env", f"VENV={installed.venv}", *QUICK, *shell, cwd=folder)


def test_the_readme_opens_with_install_an_example_and_the_demo() -> None:
    languages = [block.language for block in blocks(ROOT / "README.md")]
    assert languages[:2] == ["sh", "python"]


def test_blocks_are_found_with_their_reasons(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("```sh\nls\n```\n\n<!-- not run: hours -->\n```python\nx\n```\n```text\n```\n")
    assert blocks(page) == [
        Block("sh", "ls\n", None),
        Block("python", "x\n", "hours"),
        Block("text", "", None),
    ]
