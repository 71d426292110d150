"""The conformance kit passes communicators that keep to the contract, and fails those that do not.

Faults are sought on rings of threads, which run the same scenarios in no time; that the suite
runs the scenarios, a toy shows between processes.
"""

from __future__ import annotations

import contextlib
import copy
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from ringspan.contracts import (
    Availability,
    Communicator,
    DeviceInfo,
    Exchange,
    InvalidArgument,
    Link,
    Message,
    Pending,
    RingError,
)
from ringspan.testing import CommunicatorSuite, VirtualCommunicatorSuite
from ringspan.testing.loopback import Loopback
from ringspan.testing.suites import scenarios
from ringspan.testing.suites.check import Offered, check, suite_of
from ringspan.testing.toy_communicator import ToyCommunicator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from torch import Tensor

    Scenario = Callable[[int, Communicator, str], None]

CPU = torch.device("cpu")


class TestToy(CommunicatorSuite):
    @pytest.fixture
    def communicator(self) -> Communicator:
        return ToyCommunicator()


class Faulty(Exchange):
    """A toy's exchange that something is wrong with."""

    def __init__(self, inner: Exchange) -> None:
        self.inner = inner
        self.rank, self.world_size = inner.rank, inner.world_size

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        pending = self.inner.post(sends, receives)
        self.bytes_sent, self.bytes_received = self.inner.bytes_sent, self.inner.bytes_received
        return pending


class Opens(Communicator):
    """Opens exchanges that something is wrong with."""

    name: ClassVar[str] = "mine"

    def __init__(self, fault: type[Faulty]) -> None:
        self.fault = fault

    def probe(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def open(self, group: Any, device: torch.device) -> Exchange:
        return self.fault(ToyCommunicator().open(group, device))


class Ranks(Faulty):
    """Counts ranks from one."""

    def __init__(self, inner: Exchange) -> None:
        super().__init__(inner)
        self.rank += 1


class Reset(Faulty):
    """Counts the bytes of the last call."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        pending = super().post(sends, receives)
        self.bytes_sent = sum(message.tensor.nbytes for message in sends)
        self.bytes_received = sum(message.tensor.nbytes for message in receives)
        return pending


class Rounding(Faulty):
    """Sends every tensor as float32."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        pending = super().post(sends, receives)
        for message in receives:
            if message.tensor.dtype == torch.float64:
                pending.wait()
                message.tensor.copy_(message.tensor.float())
        return pending


class Untagged(Faulty):
    """Matches messages by their order."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        return super().post(numbered(sends), numbered(receives))


def numbered(messages: Sequence[Message]) -> list[Message]:
    return [replace(message, tag=tag) for tag, message in enumerate(messages)]


class Narrow(Faulty):
    """Has room for sixteen bits of tag."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        for message in (*sends, *receives):
            if message.tag >= 2**16:
                raise InvalidArgument("tag", expected="16 bits", got=str(message.tag))
        return super().post(sends, receives)


class Waiting(Faulty):
    """Posts and waits."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        pending = super().post(sends, receives)
        pending.wait()
        return pending


class Stale(Faulty):
    """Sends what a buffer held when it was first sent."""

    def __init__(self, inner: Exchange) -> None:
        super().__init__(inner)
        self.copies: dict[int, Tensor] = {}

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        return super().post([self._first(message) for message in sends], receives)

    def _first(self, message: Message) -> Message:
        tensor = message.tensor
        return replace(message, tensor=self.copies.setdefault(tensor.data_ptr(), tensor.clone()))


class Whole(Faulty):
    """Fills the memory behind a tensor from its beginning."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        return super().post(sends, [self._first(message) for message in receives])

    def _first(self, message: Message) -> Message:
        memory = torch.empty(0, dtype=message.tensor.dtype).set_(message.tensor.untyped_storage())
        return replace(message, tensor=memory[: message.tensor.numel()])


class Hoarding(Faulty):
    """Keeps every tensor that it has seen."""

    def __init__(self, inner: Exchange) -> None:
        super().__init__(inner)
        self.hoard: list[Tensor] = []

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        self.hoard += [message.tensor for message in (*sends, *receives)]
        return super().post(sends, receives)


class Unchecked(Faulty):
    """Sends before it looks at what else there is to do."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        try:
            return super().post(sends, receives)
        except InvalidArgument:
            good = [message for message in sends if message.tag == 0 and message.tensor.is_cpu]
            super().post(good, [])
            raise


class Lazy(Faulty):
    """Lets anything be posted, and finds out when it is waited for."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        try:
            return super().post(sends, receives)
        except InvalidArgument as error:
            return Refusing(error)


class Refusing(Pending):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def wait(self) -> None:
        raise self.error


class Once(Faulty):
    """Cannot be waited for twice."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        return WaitedForOnce(super().post(sends, receives))


class WaitedForOnce(Pending):
    def __init__(self, inner: Pending) -> None:
        self.inner: Pending | None = inner

    def wait(self) -> None:
        assert self.inner is not None, "waited for twice"
        self.inner.wait()
        self.inner = None


class Wordless(Faulty):
    """Says that something failed, and not what."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        return Mute(super().post(sends, receives))


class Mute(Pending):
    def __init__(self, inner: Pending) -> None:
        self.inner = inner

    def wait(self) -> None:
        try:
            self.inner.wait()
        except RingError as error:
            raise RingError("ring", expected="no failure", got="one") from error


class Someone(Faulty):
    """Blames another rank."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        return Blaming(super().post(sends, receives))


class Blaming(Pending):
    def __init__(self, inner: Pending) -> None:
        self.inner = inner

    def wait(self) -> None:
        try:
            self.inner.wait()
        except RingError as error:
            other = copy.copy(error)
            other.peer = 0
            raise other from error


FAULTS: dict[str, tuple[type[Faulty], Scenario]] = {
    "ranks from one": (Ranks, scenarios.the_exchange_knows_its_group),
    "counts of the last call": (Reset, scenarios.bytes_are_counted),
    "counts that start anew": (Reset, scenarios.one_exchange_serves_many_calls),
    "rounding": (Rounding, scenarios.every_dtype_travels),
    "no tags": (Untagged, scenarios.tags_match_in_any_order),
    "small tags": (Narrow, scenarios.tags_match_in_any_order),
    "waiting in post": (Waiting, scenarios.posting_does_not_wait),
    "a buffer read once": (Stale, scenarios.buffers_are_used_again),
    "the memory behind a slice": (Whole, scenarios.messages_are_parts_of_larger_memory),
    "tensors kept for ever": (Hoarding, scenarios.nothing_is_kept),
    "good messages of a bad call sent": (Unchecked, scenarios.bad_messages_are_refused),
    "refused too late": (Lazy, scenarios.bad_messages_are_refused),
    "waited for once": (Once, scenarios.waiting_happens_in_any_order),
    "an error without its peer": (Wordless, scenarios.a_silent_peer_is_an_error),
    "an error with another peer": (Someone, scenarios.a_silent_peer_is_an_error),
}


@pytest.mark.parametrize(("fault", "scenario"), FAULTS.values(), ids=FAULTS)
def test_a_faulty_communicator_fails(
    fault: type[Faulty], scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios, "PATIENCE", timedelta(seconds=0.2))
    with (
        contextlib.closing(Loopback(2)) as loopback,
        pytest.raises((AssertionError, RingError, pytest.fail.Exception, InvalidArgument)),
    ):
        loopback.run(scenario, Opens(fault), "cpu")


@pytest.mark.parametrize(
    "scenario",
    # In the order of the faults: test processes must collect alike.
    dict.fromkeys(scenario for _, scenario in FAULTS.values()),
    ids=lambda each: each.__name__,
)
def test_a_right_communicator_passes_the_same_scenarios(
    scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scenarios, "PATIENCE", timedelta(seconds=0.2))
    for world_size in (1, 2, 3, 5):
        if world_size > 1 or scenario is not scenarios.a_silent_peer_is_an_error:
            with contextlib.closing(Loopback(world_size)) as loopback:
                loopback.run(scenario, Opens(Faulty), "cpu")


class VirtualToy(Communicator):
    """Copies, one after the other; subclasses go wrong."""

    name: ClassVar[str] = "virtual-toy"
    virtual: ClassVar[bool] = True

    def probe(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def shards(self, N: int) -> int:
        return max(1, -(-N // 1000))

    def computes_on(self) -> torch.device:
        return CPU

    def open(self, group: Any, device: torch.device) -> Exchange:
        return VirtualExchange(device)


class VirtualExchange(Exchange):
    rank, world_size = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        pairs = self.pairs(sends, receives)
        for sent, received in pairs:
            self.copy(sent, received)
            self.bytes_received += sent.nbytes if self.here(received) else 0
            self.bytes_sent += sent.nbytes if self.here(sent) else 0
        return Done()

    def here(self, tensor: Tensor) -> bool:
        return tensor.device.type == self.device.type

    def copy(self, sent: Tensor, received: Tensor) -> None:
        received.view(-1).view(torch.uint8).copy_(sent.view(-1).view(torch.uint8))

    def pairs(
        self, sends: Sequence[Message], receives: Sequence[Message]
    ) -> list[tuple[Tensor, Tensor]]:
        by_tag = {message.tag: message.tensor for message in receives}
        tags = [message.tag for message in sends]
        tensors = [message.tensor for message in (*sends, *receives)]
        if (
            sorted(tags) != sorted(message.tag for message in receives)
            or len(by_tag) < len(receives)
            or any(each.tensor.nbytes != by_tag[each.tag].nbytes for each in sends)
            or not all(x.is_contiguous() and (x.is_cpu or self.here(x)) for x in tensors)
        ):
            raise InvalidArgument("messages", expected="both ends of each", got=str(tags))
        return [(message.tensor, by_tag[message.tag]) for message in sends]


class Done(Pending):
    def wait(self) -> None:
        pass


class TestVirtualToy(VirtualCommunicatorSuite):
    @pytest.fixture
    def communicator(self) -> Communicator:
        return VirtualToy()


class Eager(VirtualToy):
    """Serves whoever asks."""

    def reasons_against(self, problem: Any) -> Iterable[str]:
        return ()


class NoShards(VirtualToy):
    """Spreads no tokens over no ranks."""

    def shards(self, N: int) -> int:
        return -(-N // 1000)


class Nowhere(VirtualToy):
    """Does not say which device computes."""

    def computes_on(self) -> torch.device:
        return super(VirtualToy, self).computes_on()


class InOrder(VirtualExchange):
    """Copies the first send into the first receive."""

    def pairs(
        self, sends: Sequence[Message], receives: Sequence[Message]
    ) -> list[tuple[Tensor, Tensor]]:
        super().pairs(sends, receives)
        return [(a.tensor, b.tensor) for a, b in zip(sends, receives, strict=True)]


class Careless(VirtualExchange):
    """Copies what it finds both ends of."""

    def pairs(
        self, sends: Sequence[Message], receives: Sequence[Message]
    ) -> list[tuple[Tensor, Tensor]]:
        by_tag = {message.tag: message.tensor for message in receives}
        return [(each.tensor, by_tag[each.tag]) for each in sends if each.tag in by_tag]


class Postponing(VirtualExchange):
    """Copies when it is waited for, from what was sent once more by then."""

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        self.waiting = lambda: super(Postponing, self).post(sends, receives)
        return Postponed(self)


class Postponed(Pending):
    def __init__(self, exchange: Postponing) -> None:
        self.exchange = exchange

    def wait(self) -> None:
        self.exchange.waiting()


def opening(exchange: type[VirtualExchange]) -> VirtualToy:
    toy: VirtualToy = type("Mine", (VirtualToy,), {"open": lambda self, _, at: exchange(at)})()
    return toy


VIRTUAL_FAULTS: dict[str, tuple[Communicator, str]] = {
    "process groups served": (Eager(), "reasons"),
    "no shard of nothing": (NoShards(), "shards"),
    "no device": (Nowhere(), "which_device"),
    "no tags": (opening(InOrder), "equal_tag"),
    "one end alone": (opening(Careless), "refused_before"),
    "one call at a time": (opening(Postponing), "any_order"),
}


def checked(communicator: Communicator, select: str) -> Any:
    offered = Offered("mine", "communicator", "mine", communicator)
    (found,) = check([offered], select=select, quiet=True)
    return found


@pytest.mark.parametrize(("communicator", "select"), VIRTUAL_FAULTS.values(), ids=VIRTUAL_FAULTS)
def test_a_faulty_virtual_communicator_fails(communicator: Communicator, select: str) -> None:
    assert checked(communicator, select).state == "failed"


def test_a_right_virtual_communicator_passes_the_same_tests() -> None:
    select = " or ".join(select for _, select in VIRTUAL_FAULTS.values())
    assert checked(VirtualToy(), select).state == "passed"


def test_each_kind_of_communicator_gets_its_own_suite() -> None:
    virtual, real = (
        suite_of(Offered("mine", "communicator", "mine", each))
        for each in (VirtualToy(), ToyCommunicator())
    )
    assert issubclass(virtual, VirtualCommunicatorSuite)
    assert issubclass(real, CommunicatorSuite)


def test_what_a_communicator_serves_follows_from_its_kind() -> None:
    group, virtual = Link("cpu", 2, "cpu:gloo"), Link("cpu", 2, virtual=True)
    assert list(ToyCommunicator().reasons_against(group)) == []
    assert list(ToyCommunicator().reasons_against(virtual)) == [
        "2 virtual ranks in one process (supported: a process group)"
    ]
    assert list(VirtualToy().reasons_against(virtual)) == []
    assert list(VirtualToy().reasons_against(group)) == [
        "2 ranks, cpu tensors, cpu:gloo (supported: virtual ranks of one process)"
    ]
