"""Plugins that are installed for a while: entry points are the only way into the registry."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["plugged_in"]


@contextmanager
def plugged_in(name: str, module: str) -> Iterator[None]:
    """Installs an importable module as the plugin `name`, on this process's path.

    Processes that are started meanwhile have it too. A registry that has discovered its plugins
    before does not look again.

    Example:
        >>> with plugged_in("toy", "ringspan.testing.toy"), contextlib.closing(Ring(2)) as ring:
        ...     ring.run(attend_on_the_toy)
    """
    with tempfile.TemporaryDirectory() as site:
        info = Path(site) / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[ringspan]\n{name} = {module}\n")
        sys.path.append(site)
        try:
            yield
        finally:
            sys.path.remove(site)
