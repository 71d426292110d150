"""What the parts of the suite of attention backends have in common: fixtures, and what to vary."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ringspan.contracts import AttentionBackend, DeviceInfo, MaskCase, Provider
from ringspan.testing.suites.provider import ProviderSuite
from ringspan.testing.suites.tiles import Tile
from ringspan.testing.suites.trial import DTYPES, Trial

if TYPE_CHECKING:
    from ringspan.testing.pytest_plugin import Verdict

__all__ = ["BackendSuite", "each_dtype", "each_mask"]

each_mask = pytest.mark.parametrize("mask", sorted(MaskCase), ids=str)
each_dtype = pytest.mark.parametrize("dtype", DTYPES)


class BackendSuite(ProviderSuite, published=True):
    """The backend under test, on each device of this machine that it can use."""

    @pytest.fixture
    def backend(self) -> AttentionBackend:
        """The backend under test."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `backend`")

    @pytest.fixture
    def provider(self, backend: AttentionBackend) -> Provider:
        """The same, for the tests of all kinds."""
        return backend

    @pytest.fixture
    def trial(self, backend: AttentionBackend, device: DeviceInfo, verdict: Verdict) -> Trial:
        """The backend on a device of this machine."""
        return Trial(backend, device, verdict)

    @pytest.fixture
    def tile(self, trial: Trial) -> Tile:
        """A tile that the backend serves: what a test changes in it is what the test is about."""
        accepted = trial.accepted()
        assert accepted, f"usable here, yet it refuses every tile: {trial.reasons(Tile())}"
        return accepted
