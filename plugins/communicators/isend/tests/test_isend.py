"""The `isend` communicator between real processes, over gloo."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import isend_scenarios as scenarios
import pytest
import torch
from ringspan.contracts import (
    Communicator,
    DeviceInfo,
    InvalidArgument,
    Link,
    PeerLost,
    RingError,
    RingTimeout,
)
from ringspan.testing import CommunicatorSuite
from ringspan.testing.ranks import Ring
from ringspan.testing.suites.check import Offered, check
from ringspan_isend import Isend, ringspan_communicators
from ringspan_isend.diagnosis import diagnose
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
        scenarios.staged_steps_reuse_their_buffers,
        scenarios.staged_buffers_in_flight_are_not_reused,
        scenarios.outsiders_are_refused,
        scenarios.empty_tensors_do_not_travel,
        scenarios.bad_messages_are_refused_by_name,
        scenarios.a_tag_in_flight_is_not_used_again,
    ],
    ids=lambda scenario: scenario.__name__,
)
def test_between_three_ranks(ring: Ring, scenario: Callable[[int], None]) -> None:
    ring.run(scenario)


@pytest.mark.parametrize(
    ("scenario", "world_size", "survivors"),
    [
        (scenarios.a_silent_peer_is_named, 2, 2),
        (scenarios.a_timeout_elsewhere_in_the_group_is_told, 2, 2),
        (scenarios.a_peer_that_died_before_is_lost, 3, 2),
        (scenarios.a_peer_that_dies_while_awaited_is_lost, 3, 2),
        (scenarios.the_message_that_failed_is_named, 3, 2),
        (scenarios.the_dead_are_named_rather_than_the_silent, 3, 2),
        (scenarios.who_waits_for_a_rank_that_lost_another_hears_of_it, 3, 2),
        (scenarios.what_is_in_flight_at_a_failure_stays_in_memory, 3, 2),
        (scenarios.staged_failures_keep_their_buffers, 3, 2),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_failure(scenario: Callable[[int], None], world_size: int, survivors: int) -> None:
    with contextlib.closing(Ring(world_size)) as ring:
        ring.run(scenario, answers=survivors)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[pair.cc:553] Connection closed by peer [127.0.0.1]:5. This is typically", PeerLost),
        ("[pair.cc:9] Read error [127.0.0.1]:5: Connection reset by peer", PeerLost),
        ("[pair.cc:9] writev [127.0.0.1]:5: Broken pipe", PeerLost),
        ("ncclRemoteError: A call failed possibly due to a remote process exiting", PeerLost),
        ("[unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation", RingTimeout),
        ("Application timeout caused pair closure", RingTimeout),
        ("[enforce fail at pair.cc:446] op.preamble.length <= op.nbytes", RingError),
    ],
)
def test_what_torch_says_is_understood(text: str, kind: type[RingError]) -> None:
    assert diagnose(RuntimeError(text)).kind is kind


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
    assert choose("cuda:nccl", "cpu") is None
    (reason,) = Isend().reasons_against(Link("cpu", 2, "cuda:nccl"))
    assert reason.startswith("a group with the backends cuda:nccl for cpu tensors (supported")


@pytest.mark.parametrize("backends", ["", "cpu:gloo,cuda:nccl"])
def test_a_group_that_can_is_served(backends: str) -> None:
    assert not list(Isend().reasons_against(Link("cuda", 2, backends)))


def test_virtual_ranks_are_refused_by_name() -> None:
    (reason,) = Isend().reasons_against(Link("cpu", 8, virtual=True))
    assert reason == "8 virtual ranks in one process (supported: a process group)"
    with pytest.raises(InvalidArgument, match="group: expected a process group, got None"):
        Isend().open(None, torch.device("cpu"))


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
