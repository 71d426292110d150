"""The standard tests of a communicator, between real processes in one process group."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, TypeAlias

import pytest

from ringspan.contracts import Communicator, DeviceInfo, Link, Provider
from ringspan.testing.ranks import Ring
from ringspan.testing.suites import scenarios
from ringspan.testing.suites.devices import device_name
from ringspan.testing.suites.provider import ProviderSuite

if TYPE_CHECKING:
    from ringspan.testing.pytest_plugin import Verdict

__all__ = ["CommunicatorSuite"]

Scenario: TypeAlias = Callable[[int, Communicator, str], None]
Run: TypeAlias = Callable[[int, Scenario], None]

each_world_size = pytest.mark.parametrize("world_size", [1, 2, 3])


class CommunicatorSuite(ProviderSuite, published=True):
    """Subclass it and say, in a fixture, what is tested; pytest finds the tests.

    Ranks are processes of their own: they import the communicator's class from its module, which
    must therefore be a module that is installed or on the path.

    Example:
        >>> class TestMine(CommunicatorSuite):
        ...     @pytest.fixture
        ...     def communicator(self):
        ...         return Mine()
    """

    process_group: ClassVar[str] = "gloo"
    """The backend of the process groups it is opened on, as for `init_process_group`."""

    @pytest.fixture
    def communicator(self) -> Communicator:
        """The communicator under test."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `communicator`")

    @pytest.fixture
    def provider(self, communicator: Communicator) -> Provider:
        """The same, for the tests of all kinds."""
        return communicator

    @pytest.fixture
    def run(
        self,
        communicator: Communicator,
        device: DeviceInfo,
        ringspan_rings: dict[tuple[int, str], Ring],
        verdict: Verdict,
    ) -> Run:
        """Has every rank of a ring run a scenario on a device of this machine."""

        def run(world_size: int, scenario: Scenario) -> None:
            kind = (world_size, self.process_group)
            if kind not in ringspan_rings or not ringspan_rings[kind].usable:
                ringspan_rings[kind] = Ring(*kind)
            _run(ringspan_rings[kind], scenario, communicator, device)
            verdict.served()

        return run

    @pytest.fixture
    def run_once(self, communicator: Communicator, device: DeviceInfo, verdict: Verdict) -> Run:
        """The same, in processes that the scenario may break; rank 0 must live to answer."""

        def run(world_size: int, scenario: Scenario) -> None:
            with contextlib.closing(Ring(world_size, self.process_group)) as ring:
                _run(ring, scenario, communicator, device, answers=1)
            verdict.served()

        return run

    def test_virtual_ranks_are_refused_with_reasons(
        self, communicator: Communicator, device: DeviceInfo, verdict: Verdict
    ) -> None:
        """Never silently one for the other; a process group of unknown backends is not."""
        assert not communicator.virtual, "VirtualCommunicatorSuite is for virtual ranks"
        assert not list(communicator.reasons_against(Link(device.type, 2)))
        verdict.refused(*communicator.reasons_against(Link(device.type, 2, virtual=True)))

    @each_world_size
    def test_the_exchange_knows_its_group(self, run: Run, world_size: int) -> None:
        """Its rank and world size; no bytes have travelled yet."""
        run(world_size, scenarios.the_exchange_knows_its_group)

    @each_world_size
    def test_values_travel_around_the_ring(self, run: Run, world_size: int) -> None:
        """Several steps on one exchange; a ring of one sends nothing."""
        run(world_size, scenarios.values_travel_around_the_ring)

    @each_world_size
    def test_every_dtype_travels_bit_for_bit(self, run: Run, world_size: int) -> None:
        """16-bit, 8-bit and boolean ones too."""
        run(world_size, scenarios.every_dtype_travels)

    @each_world_size
    def test_large_messages_cross_without_a_deadlock(self, run: Run, world_size: int) -> None:
        """Everybody sends before anybody has received."""
        run(world_size, scenarios.large_messages_cross)

    @each_world_size
    def test_bytes_are_counted_as_sent_and_received(self, run: Run, world_size: int) -> None:
        """Uneven sizes, summed over calls."""
        run(world_size, scenarios.bytes_are_counted)

    @each_world_size
    def test_one_exchange_serves_many_calls(self, run: Run, world_size: int) -> None:
        """It is opened once for a group; bytes are counted over all calls."""
        run(world_size, scenarios.one_exchange_serves_many_calls)

    @each_world_size
    def test_buffers_are_used_again_once_waited_for(self, run: Run, world_size: int) -> None:
        """What was sent may be overwritten at once."""
        run(world_size, scenarios.buffers_are_used_again)

    @each_world_size
    def test_messages_are_parts_of_larger_memory(self, run: Run, world_size: int) -> None:
        """What lies beside them stays as it was."""
        run(world_size, scenarios.messages_are_parts_of_larger_memory)

    @each_world_size
    def test_tags_match_whatever_the_posting_order(self, run: Run, world_size: int) -> None:
        """Messages between the same two ranks are told apart, by tags up to `2**30 - 1`."""
        run(world_size, scenarios.tags_match_in_any_order)

    @each_world_size
    def test_empty_messages_arrive(self, run: Run, world_size: int) -> None:
        """Shards may be empty."""
        run(world_size, scenarios.empty_messages_arrive)

    @each_world_size
    def test_everybody_writes_to_everybody_at_once(self, run: Run, world_size: int) -> None:
        """Messages of uneven lengths in one call."""
        run(world_size, scenarios.everybody_writes_to_everybody)

    @each_world_size
    def test_several_calls_are_in_flight_and_waited_for_in_any_order(
        self, run: Run, world_size: int
    ) -> None:
        """Waiting twice is waiting once."""
        run(world_size, scenarios.waiting_happens_in_any_order)

    @each_world_size
    def test_posting_does_not_wait_for_the_peer(self, run: Run, world_size: int) -> None:
        """Otherwise nothing could be computed meanwhile."""
        run(world_size, scenarios.posting_does_not_wait)

    @each_world_size
    def test_what_is_sent_stays_alive_until_it_has_arrived(self, run: Run, world_size: int) -> None:
        """Also where nobody else holds it."""
        run(world_size, scenarios.tensors_stay_alive)

    @each_world_size
    def test_nothing_is_kept_of_what_was_waited_for(self, run: Run, world_size: int) -> None:
        """The exchange lives as long as its group."""
        run(world_size, scenarios.nothing_is_kept)

    @each_world_size
    def test_another_thread_posts_and_waits(self, run: Run, world_size: int) -> None:
        """Backward passes on GPUs run in a thread of torch's."""
        run(world_size, scenarios.another_thread_posts_and_waits)

    @each_world_size
    def test_inference_mode_changes_nothing(self, run: Run, world_size: int) -> None:
        """Whether tensors were made inside or outside of it."""
        run(world_size, scenarios.inference_mode_changes_nothing)

    @each_world_size
    def test_bad_messages_are_refused_before_anything_is_posted(
        self, run: Run, world_size: int
    ) -> None:
        """To itself, to nobody, not contiguous, on another device."""
        run(world_size, scenarios.bad_messages_are_refused)

    def test_peers_are_ranks_of_the_group(self, run: Run) -> None:
        """Not ranks of the world."""
        run(3, scenarios.peers_are_ranks_of_the_group)

    def test_a_silent_peer_is_an_error_and_not_a_hang(self, run_once: Run) -> None:
        """Within the timeout of the group."""
        run_once(2, scenarios.a_silent_peer_is_an_error)

    def test_a_tag_that_nobody_sends_is_an_error_and_not_a_hang(self, run_once: Run) -> None:
        """And no other message takes its place."""
        run_once(2, scenarios.a_tag_that_nobody_sends_is_an_error)

    def test_a_dead_peer_is_an_error_and_not_a_hang(self, run_once: Run) -> None:
        """For who waits for it and for who writes to it."""
        run_once(2, scenarios.a_dead_peer_is_an_error)


def _run(
    ring: Ring,
    scenario: Scenario,
    communicator: Communicator,
    device: DeviceInfo,
    answers: int | None = None,
) -> None:
    try:
        ring.run(scenario, communicator, device_name(device), answers=answers)
    except ModuleNotFoundError as error:
        module = type(communicator).__module__
        if error.name != module.partition(".")[0]:
            raise
        pytest.fail(
            f"ranks are processes of their own and cannot import {module}: "
            "install the communicator, or put its module on PYTHONPATH"
        )
