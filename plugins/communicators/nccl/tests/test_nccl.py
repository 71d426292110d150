"""The `nccl` communicator: all of it but NCCL itself, between real processes, over gloo."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import nccl_scenarios as scenarios
import pytest
import torch
from over_gloo import Deaf, OverGloo
from ringspan.contracts import (
    Communicator,
    DeviceInfo,
    InvalidArgument,
    Link,
    PeerLost,
    RingError,
    RingTimeout,
)
from ringspan.testing import CommunicatorSuite, omitted
from ringspan.testing.ranks import Ring
from ringspan_nccl import Nccl, NcclSettings, ringspan_communicators
from ringspan_nccl.faults import fault_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class TestNcclOverGloo(CommunicatorSuite):
    @pytest.fixture
    def communicator(self) -> Communicator:
        return OverGloo()

    test_a_tag_that_nobody_sends_is_an_error_and_not_a_hang = omitted(
        "NCCL has no tags: it matches by order, so both sides must post the same messages"
    )


@pytest.fixture(scope="module")
def rings() -> Iterator[dict[int, Ring]]:
    with contextlib.ExitStack() as stack:
        yield {size: stack.enter_context(contextlib.closing(Ring(size))) for size in (2, 3, 4)}


@pytest.mark.parametrize(
    ("scenario", "world_size"),
    [
        (scenarios.many_messages_cross_in_any_order, 2),
        (scenarios.many_messages_cross_in_any_order, 3),
        (scenarios.many_messages_cross_in_any_order, 4),
        (scenarios.uneven_messages_in_one_direction_arrive, 3),
        (scenarios.the_users_messages_do_not_mix_with_ours, 2),
        (scenarios.two_exchanges_of_one_group_do_not_mix, 2),
        (scenarios.subgroups_meet_whatever_else_their_members_know, 3),
        (scenarios.bad_messages_are_refused_by_name, 3),
        (scenarios.outsiders_and_other_groups_are_refused, 3),
        (scenarios.tensors_live_until_they_are_waited_for, 3),
        (scenarios.the_host_runs_ahead_of_a_peer_that_comes, 2),
        (scenarios.ranks_that_cannot_be_connected_are_an_error, 2),
        (scenarios.a_batch_that_does_not_start_is_named, 2),
        (scenarios.a_rank_that_does_not_open_is_named, 2),
        (scenarios.the_host_does_not_run_ahead_of_a_silent_peer, 2),
        (scenarios.a_silent_peer_is_named, 2),
        (scenarios.which_of_two_peers_is_silent_is_not_pretended_to_be_known, 3),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
def test_between_ranks(
    rings: dict[int, Ring], scenario: Callable[[int], None], world_size: int
) -> None:
    rings[world_size].run(scenario)


@pytest.mark.parametrize("communicator", [OverGloo(), Deaf()], ids=["noticed", "unnoticed"])
def test_a_dead_peer_is_lost(communicator: Communicator) -> None:
    with contextlib.closing(Ring(3)) as ring:
        ring.run(scenarios.a_dead_peer_is_lost, communicator, answers=2)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("NCCL error: remote process exited or there was a network error", PeerLost),
        ("ncclRemoteError: A call failed possibly due to a network error", PeerLost),
        ("[pair.cc:553] Connection closed by peer [127.0.0.1]:5", PeerLost),
        ("[Rank 0] Work WorkNCCL(SeqNum=3) timed out in blocking wait.", RingTimeout),
        ("Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)", RingTimeout),
        ("ncclUnhandledCudaError: Call to CUDA function failed.", RingError),
    ],
)
def test_what_torch_says_is_understood(text: str, kind: type[RingError]) -> None:
    found = fault_of(RuntimeError(f"{text}\nmore"))
    assert (found.kind, found.got) == (kind, text)


@pytest.mark.parametrize(
    ("link", "reasons"),
    [
        (Link("cuda", 2), []),
        (Link("cuda", 2, "cpu:gloo,cuda:nccl"), []),
        (Link("cuda", 2, "cuda:nccl"), []),
        (
            Link("cuda", 2, "cpu:gloo,cuda:gloo"),
            ["a group with gloo for cuda tensors (supported: nccl)"],
        ),
        (
            Link("cpu", 2, "cpu:gloo"),
            [
                "cpu tensors (supported: cuda)",
                "a group with no backend for cuda tensors (supported: nccl)",
            ],
        ),
        (
            Link("cuda", 8, virtual=True),
            ["8 virtual ranks in one process (supported: a process group)"],
        ),
    ],
)
def test_every_reason_is_given(link: Link, reasons: list[str]) -> None:
    assert list(Nccl().reasons_against(link)) == reasons


def test_settings_are_the_plugins_section_of_the_configuration() -> None:
    nccl = Nccl()
    assert nccl._configured == NcclSettings(run_ahead=8, blocking=False)
    nccl.section = NcclSettings(run_ahead=2, blocking=True)
    assert nccl._configured is nccl.section


def test_virtual_ranks_are_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match="group: expected a process group, got None"):
        Nccl().open(None, torch.device("cuda"))


def test_the_hook_offers_nccl() -> None:
    (offered,) = ringspan_communicators()
    assert (offered.name, offered.settings) == ("nccl", NcclSettings)


def test_it_goes_before_what_serves_other_devices_too() -> None:
    assert Nccl().priority(DeviceInfo(type="cuda")) > 0 == Nccl().priority(DeviceInfo(type="cpu"))


def test_other_devices_are_a_reason_and_not_a_fault() -> None:
    found = Nccl().probe(DeviceInfo(type="cpu"))
    assert (found.usable, found.reason) == (False, "cpu device (supported: cuda)")


def test_the_probe_says_yes_with_the_version_of_nccl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_nccl_available", lambda: True)
    monkeypatch.setattr(torch.cuda.nccl, "version", lambda: (2, 27, 5))
    found = Nccl().probe(DeviceInfo(type="cuda"))
    assert (found.usable, found.version) == (True, "2.27.5")


@pytest.mark.parametrize("missing", ["is_available", "is_nccl_available"])
def test_a_torch_without_nccl_is_a_reason_and_not_a_fault(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(torch.distributed, missing, lambda: False)
    found = Nccl().probe(DeviceInfo(type="cuda"))
    assert (found.usable, found.reason) == (False, "torch was built without NCCL")
