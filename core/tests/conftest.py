"""Core's own tests run with core and the registry alone, on a toy backend."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings
from ringspan.catalogue import catalogue, configuration

if TYPE_CHECKING:
    from collections.abc import Iterator

torch.set_num_threads(1)

settings.register_profile(
    "dev",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.register_profile(
    "ci", settings.get_profile("dev"), derandomize=True, database=None, print_blob=True
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def _toy_distribution(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Installs `ringspan.testing.toy` as a plugin, as a third party would be found."""
    site = tmp_path_factory.mktemp("site")
    info = site / "ringspan_toy-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ringspan-toy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ringspan]\ntoy = ringspan.testing.toy\n")
    sys.path.append(str(site))
    catalogue.cache_clear()
    yield
    sys.path.remove(str(site))
    catalogue.cache_clear()


@pytest.fixture
def toy(_toy_distribution: None) -> Iterator[None]:
    """Runs a test on the toy backend."""
    with configuration().use(backend="toy"):
        yield
