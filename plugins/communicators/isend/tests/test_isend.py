"""The `isend` communicator between real processes, over gloo."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import isend_scenarios as scenarios
import pytest
import torch
from ringspan.contracts import Communicator, DeviceInfo, InvalidArgument
from ringspan.testing import CommunicatorSuite
from ringspan.testing.ranks import Ring
from ringspan.testing.suites.check import Offered, check
from ringspan_isend import Isend, ringspan_communicators
from ringspan_isend.route import Route, choose

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class TestIsend(CommunicatorSuite):
    @pytest.fixture
    def communicator(self) -> Communicator:
        return Isend()


@pytest.fixture(scope="module")
def ring() -> Iterator[Ring]:
    with contextlib.closing(Ring(3)) as ring:
        yield ring


@pytest.mark.parametrize(
    "scenario",
    [
        scenarios.grouped_messages_match_by_tag_too,
        scenarios.too_many_grouped_messages_are_refused,
        scenarios.staged_messages_arrive_where_they_were_wanted,
        scenarios.outsiders_are_refused,
        scenarios.empty_tensors_do_not_travel,
        scenarios.bad_messages_are_refused_by_name,
        scenarios.a_tag_in_flight_is_not_used_again,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_between_three_ranks(ring: Ring, scenario: Callable[[int], None]) -> None:
    ring.run(scenario)


def test_a_silent_peer_is_named() -> None:
    with contextlib.closing(Ring(2)) as ring:
        ring.run(scenarios.a_silent_peer_is_named)


@pytest.mark.parametrize(
    ("exchange", "test"),
    [
        (scenarios.Wrapped, ""),
        (scenarios.Uncounted, "test_bytes_are_counted_as_sent_and_received[cpu-2]"),
        (scenarios.Tagless, "test_tags_match_whatever_the_posting_order[cpu-2]"),
        (scenarios.Impatient, "test_posting_does_not_wait_for_the_peer[cpu-2]"),
    ],
)
def test_the_standard_tests_catch_a_faulty_exchange(
    exchange: type[scenarios.Wrapped], test: str
) -> None:
    offered = Offered("mine", "communicator", "mine", scenarios.Faulty(exchange))
    (found,) = check([offered], select="cpu-2 and (bytes or tags or posting)", quiet=True)
    assert found.failed == ((test,) if test else ())


@pytest.mark.parametrize(
    ("backends", "device", "expected"),
    [
        ("cpu:gloo,cuda:gloo", "cpu", Route.DIRECT),
        ("cpu:gloo,cuda:gloo", "cuda", Route.STAGED),
        ("cpu:gloo", "cuda", Route.STAGED),
        ("cpu:gloo,cuda:nccl", "cpu", Route.DIRECT),
        ("cpu:gloo,cuda:nccl", "cuda", Route.GROUPED),
        ("cuda:nccl", "cuda", Route.GROUPED),
    ],
)
def test_the_route_follows_from_the_groups_backends(
    backends: str, device: str, expected: Route
) -> None:
    assert choose(backends, device) is expected


def test_a_group_that_cannot_carry_the_device_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"carry cpu tensors, got one with .* cuda:nccl"):
        choose("cuda:nccl", "cpu")


def test_the_hook_offers_isend() -> None:
    (offered,) = ringspan_communicators()
    assert isinstance(offered, Communicator)
    assert offered.name == "isend"


def test_the_probe_says_yes_with_torchs_version() -> None:
    found = Isend().probe(DeviceInfo(type="cpu"))
    assert (found.usable, found.version) == (True, torch.__version__)


def test_a_torch_without_distributed_is_a_reason_and_not_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    found = Isend().probe(DeviceInfo(type="cpu"))
    assert not found.usable
    assert "without torch.distributed" in found.reason
