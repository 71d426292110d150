"""What holds for providers of every kind."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

from ringspan.contracts import API_VERSION, Availability, DeviceInfo, Provider
from ringspan.testing.suites.base import Suite
from ringspan.testing.suites.devices import device_name, present_devices

if TYPE_CHECKING:
    from ringspan.testing.pytest_plugin import Verdict

__all__ = ["ProviderSuite", "steady"]

ELSEWHERE = (
    DeviceInfo(type="cpu"),
    DeviceInfo(type="cuda", index=0, name="no such GPU", compute_capability=(9, 0)),
    DeviceInfo(type="cuda", index=7, name="no such GPU", compute_capability=(3, 5)),
    DeviceInfo(type="mps"),
    DeviceInfo(type="abacus"),
)

steady = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
    ],
)
"""For property tests of a suite: the same examples on every machine, inherited by many classes."""


class ProviderSuite(Suite, published=True):
    """Names, probes and priorities. The suites of the three kinds have these tests too."""

    @pytest.fixture
    def provider(self) -> Provider:
        """The provider under test, whatever its kind."""
        raise NotImplementedError

    @pytest.fixture
    def verdict(self, ringspan_verdict: Verdict) -> Verdict:
        """Where a test says whether its problem was served or refused."""
        return ringspan_verdict

    @pytest.fixture(params=present_devices(), ids=device_name)
    def device(self, request: pytest.FixtureRequest, provider: Provider) -> DeviceInfo:
        """A device of this machine that the provider can use; skips the others with its reason."""
        found: DeviceInfo = request.param
        answer = provider.probe(found)
        answer = provider.proof(found) if answer.usable else answer
        if not answer.usable:
            pytest.skip(f"not usable on {device_name(found)}: {answer.reason}")
        return found

    def test_it_has_a_name_that_configuration_can_hold(self, provider: Provider) -> None:
        """A word, and not the one that leaves the choice to the registry."""
        assert isinstance(provider.name, str)
        assert provider.name == provider.name.strip() != ""
        assert provider.name != "auto"

    def test_it_is_written_for_this_contract(self, provider: Provider) -> None:
        """`api_version` is the one that this core speaks."""
        assert provider.api_version == API_VERSION

    @pytest.mark.parametrize("anywhere", [*ELSEWHERE, *present_devices()], ids=device_name)
    def test_a_probe_answers_for_any_device_and_never_raises(
        self, provider: Provider, anywhere: DeviceInfo
    ) -> None:
        """Where it cannot serve, with a reason that a user can read."""
        answer: Any = provider.probe(anywhere)
        assert isinstance(answer, Availability)
        assert answer.usable or answer.reason.strip()
        assert isinstance(provider.priority(anywhere), int)
