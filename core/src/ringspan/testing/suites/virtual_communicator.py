"""The standard tests of a communicator whose ranks are virtual: all of them in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from ringspan.contracts import (
    Communicator,
    DeviceInfo,
    Exchange,
    InvalidArgument,
    Link,
    Message,
    Provider,
)
from ringspan.testing.suites.devices import torch_device
from ringspan.testing.suites.provider import ProviderSuite
from ringspan.testing.suites.scenarios import DTYPES

if TYPE_CHECKING:
    from ringspan.testing.pytest_plugin import Verdict

__all__ = ["VirtualCommunicatorSuite"]

HOST = torch.device("cpu")


class VirtualCommunicatorSuite(ProviderSuite, published=True):
    """Subclass it and say, in a fixture, what is tested; pytest finds the tests.

    It is for communicators with `virtual = True`. Both ends of a message are posted in one call,
    and a message is a copy between host memory and the device.

    Example:
        >>> class TestMine(VirtualCommunicatorSuite):
        ...     @pytest.fixture
        ...     def communicator(self):
        ...         return Mine()
    """

    @pytest.fixture
    def communicator(self) -> Communicator:
        """The communicator under test."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `communicator`")

    @pytest.fixture
    def provider(self, communicator: Communicator) -> Provider:
        """The same, for the tests of all kinds."""
        return communicator

    @pytest.fixture
    def place(self, device: DeviceInfo) -> torch.device:
        """The device that computes."""
        return torch_device(device)

    @pytest.fixture
    def exchange(self, communicator: Communicator, place: torch.device) -> Exchange:
        """One of its exchanges, newly opened."""
        return communicator.open(None, place)

    def test_its_ranks_are_virtual_and_process_groups_are_refused_with_reasons(
        self, communicator: Communicator, device: DeviceInfo, verdict: Verdict
    ) -> None:
        """Never silently one for the other."""
        assert communicator.virtual
        assert not list(communicator.reasons_against(Link(device.type, 4, virtual=True)))
        verdict.refused(*communicator.reasons_against(Link(device.type, 4, "cpu:gloo")))

    def test_shards_are_counted_for_any_number_of_tokens(
        self, communicator: Communicator, verdict: Verdict
    ) -> None:
        """One at least, never fewer for more tokens, and the same every time."""
        lengths = (0, 1, 2, 1000, 65_537, 10**6, 10**9)
        shards = [communicator.shards(N) for N in lengths]
        assert all(type(count) is int and count >= 1 for count in shards)
        assert shards == sorted(shards) == [communicator.shards(N) for N in lengths]
        verdict.served()

    def test_it_says_which_device_computes(
        self, communicator: Communicator, verdict: Verdict
    ) -> None:
        """For a call whose tensors all lie on the host."""
        found = communicator.computes_on()
        assert isinstance(found, torch.device)
        assert torch.ones(1, device=found).item() == 1
        verdict.served()

    def test_an_exchange_has_moved_nothing_yet(self, exchange: Exchange, verdict: Verdict) -> None:
        """Nor has it when nothing is posted."""
        exchange.post([], []).wait()
        assert (exchange.bytes_sent, exchange.bytes_received) == (0, 0)
        verdict.served()

    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    def test_every_dtype_goes_up_and_down_bit_for_bit(
        self, exchange: Exchange, place: torch.device, dtype: torch.dtype, verdict: Verdict
    ) -> None:
        """From the host to the device, and back."""
        shard = (10 * torch.randn(5, 3)).to(dtype)
        there, back = torch.empty_like(shard, device=place), torch.empty_like(shard)
        exchange.post([Message(0, shard, 0)], [Message(0, there, 0)]).wait()
        exchange.post([Message(0, there, 0)], [Message(0, back, 0)]).wait()
        assert torch.equal(back.view(torch.uint8), shard.view(torch.uint8))
        verdict.served()

    def test_each_send_is_copied_into_the_receive_of_equal_tag(
        self, exchange: Exchange, place: torch.device, verdict: Verdict
    ) -> None:
        """Whatever the order, the shape, and the direction."""
        sent = {tag: torch.full((2, 3), float(tag)) for tag in (7, 0, 2**30 - 1)}
        received = {tag: torch.zeros(6, device=place) for tag in sorted(sent)}
        up = [Message(0, x, tag) for tag, x in sent.items()]
        down = Message(0, torch.full((4,), 5.0, device=place), 1)
        landed = torch.zeros(4)
        exchange.post(
            [*up, down],
            [Message(0, landed, 1), *(Message(0, x, tag) for tag, x in received.items())],
        ).wait()
        assert all((received[tag] == x.view(-1).to(place)).all() for tag, x in sent.items())
        assert (landed == 5).all()
        verdict.served()

    def test_bytes_are_counted_over_all_calls(
        self, exchange: Exchange, place: torch.device, verdict: Verdict
    ) -> None:
        """What reaches the device is received, what leaves it sent; on the host alone both."""
        for rows in (3, 5):
            there = torch.empty(rows, device=place)
            exchange.post([Message(0, torch.ones(rows), 0)], [Message(0, there, 0)]).wait()
        exchange.post([Message(0, there[:2], 0)], [Message(0, torch.empty(2), 0)]).wait()
        up, down = 4 * (3 + 5), 4 * 2
        both = (up + down, up + down) if place.type == "cpu" else (down, up)
        assert (exchange.bytes_sent, exchange.bytes_received) == both
        verdict.served()

    def test_empty_messages_are_copied(
        self, exchange: Exchange, place: torch.device, verdict: Verdict
    ) -> None:
        """Shards may be empty."""
        received = torch.zeros(2, device=place)
        exchange.post(
            [Message(0, torch.empty(0, 3), 0), Message(0, torch.ones(2), 1)],
            [Message(0, received, 1), Message(0, torch.empty(0, device=place), 0)],
        ).wait()
        assert (received == 1).all()
        verdict.served()

    def test_several_calls_are_in_flight_and_waited_for_in_any_order(
        self, exchange: Exchange, place: torch.device, verdict: Verdict
    ) -> None:
        """With the same tags: both ends of a message are in one call. Waiting twice is once."""
        sent = [torch.full((1 << 16,), float(call)) for call in range(3)]
        received = [torch.zeros(1 << 16, device=place) for _ in sent]
        pending = [
            exchange.post([Message(0, x, 0)], [Message(0, y, 0)])
            for x, y in zip(sent, received, strict=True)
        ]
        for call in (2, 0, 1):
            pending[call].wait()
            pending[call].wait()
            assert (received[call] == call).all()
        verdict.served()

    def test_what_is_sent_stays_alive_and_is_free_once_waited_for(
        self, exchange: Exchange, place: torch.device, verdict: Verdict
    ) -> None:
        """Also where nobody else holds it."""
        received = [torch.zeros(1 << 16, device=place) for _ in range(2)]
        pending = exchange.post(
            [Message(0, torch.full((1 << 16,), 3.0), 0)], [Message(0, received[0], 0)]
        )
        others = [torch.full((1 << 16,), -1.0) for _ in range(8)]
        pending.wait()
        buffer = torch.full((1 << 16,), 4.0)
        exchange.post([Message(0, buffer, 0)], [Message(0, received[1], 0)]).wait()
        buffer.fill_(-1)
        assert (received[0] == 3).all()
        assert (received[1] == 4).all()
        assert all((x == -1).all() for x in others)
        verdict.served()

    def test_inference_mode_changes_nothing(
        self, exchange: Exchange, place: torch.device, verdict: Verdict
    ) -> None:
        """Whether tensors were made inside or outside of it."""
        outside = torch.empty(3, device=place)
        with torch.inference_mode():
            inside = torch.empty(3, device=place)
            for received in (outside, inside):
                exchange.post([Message(0, torch.ones(3), 0)], [Message(0, received, 0)]).wait()
        assert (outside == 1).all()
        assert (inside == 1).all()
        verdict.served()

    def test_bad_messages_are_refused_before_anything_is_copied(
        self, exchange: Exchange, place: torch.device, verdict: Verdict
    ) -> None:
        """One end alone, a tag twice, another size, not contiguous, on another device."""
        fine, landed = Message(0, torch.ones(4), 0), torch.zeros(4, device=place)
        into = Message(0, landed, 0)
        strided = torch.ones(4, 2)[:, 0]
        for sends, receives in (
            ([fine, Message(0, torch.ones(4), 1)], [into]),
            ([fine], [into, Message(0, landed, 1)]),
            ([fine, fine], [into, into]),
            ([fine, Message(0, torch.ones(3), 1)], [into, Message(0, landed, 1)]),
            ([fine, Message(0, strided, 1)], [into, Message(0, landed, 1)]),
            (
                [fine, Message(0, torch.ones(4), 1)],
                [into, Message(0, torch.ones(4, 2, device=place)[:, 0], 1)],
            ),
            ([fine, Message(0, torch.ones(4, device="meta"), 1)], [into, Message(0, landed, 1)]),
        ):
            with pytest.raises(InvalidArgument):
                exchange.post(sends, receives)
        assert not landed.any()
        assert (exchange.bytes_sent, exchange.bytes_received) == (0, 0)
        verdict.served()
