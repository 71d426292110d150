"""Core's own tests run with core and the registry alone, on a toy backend."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings
from ringspan.catalogue import catalogue, configuration
from ringspan.contracts import Availability, DeviceInfo, Ordering, Permutation, Tokens, axes_of
from ringspan.plan.orders import order

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


class _BackToFront(Ordering):
    """The last token stands first; serves tokens of any kind."""

    name = "back-to-front"

    def probe(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def places(self, tokens: Tokens, **_: object) -> Permutation:
        return Permutation.from_tokens(torch.arange(tokens.N).flip(0))


class _Scrambled(_BackToFront):
    """No order at all, yet the same whenever it is asked for."""

    name = "scrambled"

    def places(self, tokens: Tokens, **_: object) -> Permutation:
        return Permutation.from_tokens(
            torch.from_numpy(np.random.RandomState(7).permutation(tokens.N))
        )


class _DownColumns(_BackToFront):
    """By the last axis, then the one before, ..; equal points in order of position."""

    name = "down-columns"

    def places(self, tokens: Tokens, **_: object) -> Permutation:
        points = torch.stack(axes_of(tokens, ordering=self.name)).numpy()
        return Permutation.from_tokens(torch.from_numpy(np.lexsort(points)))


class _UpColumns(_DownColumns):
    """The same from the last token to the first."""

    name = "up-columns"

    def places(self, tokens: Tokens, **options: object) -> Permutation:
        return Permutation.from_tokens(super().places(tokens, **options).tokens.flip(0))


class _InTiles(_DownColumns):
    """Tiles of eight cells a side, row after row."""

    name = "in-tiles"

    def places(self, tokens: Tokens, **_: object) -> Permutation:
        points = torch.stack(axes_of(tokens, ordering=self.name)).numpy()
        by = [*(points % 8)[::-1], *(points // 8)[::-1]]
        return Permutation.from_tokens(torch.from_numpy(np.lexsort(by)))


@pytest.fixture
def orderings(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, ...]]:
    """Five orderings are installed, and no others: their names. The last three need coordinates."""
    offered = {
        one.name: one
        for one in (_BackToFront(), _Scrambled(), _DownColumns(), _UpColumns(), _InTiles())
    }

    class Catalogue:
        def names(self, kind: str) -> tuple[str, ...]:
            return tuple(offered)

        def provider(self, kind: str, name: str) -> Ordering:
            return offered[name] if name in offered else catalogue().provider(kind, name)  # type: ignore[return-value]

    monkeypatch.setattr("ringspan.plan.orders.catalogue", Catalogue)
    monkeypatch.setattr("ringspan.plan.best.catalogue", Catalogue)
    order.cache_clear()
    yield tuple(offered)
    order.cache_clear()
