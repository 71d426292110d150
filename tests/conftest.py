"""What all cross-distribution tests share: quiet threads, reproducible examples and rings."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings

# So that ranks, which are processes of their own, can import the functions of a test module.
ROOT = str(Path(__file__).resolve().parents[1])
if ROOT not in sys.path:
    sys.path.append(ROOT)

from tests.installation import Installation, make  # noqa: E402
from tests.worlds import Run, worlds  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Iterator

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

_slow = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("dev", deadline=None, suppress_health_check=_slow)
settings.register_profile(
    "ci", settings.get_profile("dev"), derandomize=True, database=None, print_blob=True
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def run_ring() -> Iterator[Run]:
    """`worlds` of real processes in a gloo group (`torch.distributed.group.WORLD`)."""
    # Here, because what installs Ringspan for itself runs where there is none.
    from ringspan.testing.ranks import Ring

    with worlds(Ring) as run:
        yield run


@pytest.fixture(scope="module")
def run_loopback() -> Iterator[Run]:
    """As `run_ring`, with threads for processes."""
    from ringspan.testing.loopback import Loopback

    with worlds(Loopback) as run:
        yield run


@pytest.fixture(scope="session")
def installed() -> Iterator[Installation]:
    """An environment of its own that `make install` filled, dependencies and all."""
    with tempfile.TemporaryDirectory() as folder:
        venv = Path(folder) / "venv"
        make(venv, "install")
        yield Installation(venv)
