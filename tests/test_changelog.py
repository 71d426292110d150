"""The changelog is assembled from the fragments in changelog.d."""

from __future__ import annotations

import subprocess
import sys

from tests.isolation.workspace import ROOT, distribution


def test_the_fragments_make_a_draft_of_the_next_release() -> None:
    version = str(distribution("ringspan").project["version"])
    command = [sys.executable, "-m", "towncrier", "build", "--draft", "--version", version]
    draft = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    assert f"## {version}" in draft
    assert "Added" in draft


def test_every_fragment_is_of_a_known_kind() -> None:
    known = {"added", "changed", "fixed", "removed"}
    fragments = [path.name for path in (ROOT / "changelog.d").glob("*.md")]
    assert fragments
    assert all(name.split(".")[-2] in known for name in fragments)
