"""A plugin that writes down what a ring does: when it posts, waits and computes."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from ringspan.contracts import (
    AttentionBackend,
    Availability,
    Communicator,
    DeviceInfo,
    Exchange,
    Grads,
    Message,
    Pending,
    TileOutput,
    hookimpl,
)
from ringspan.testing.toy import Toy
from ringspan.testing.toy_communicator import ToyCommunicator

__all__ = ["events"]


class _Own(threading.local):
    def __init__(self) -> None:
        self.events: list[str] = []


_own = _Own()


def events() -> list[str]:
    """What the calling rank did since it last asked; runs of the same are written down once."""
    found, _own.events = _own.events, []
    return found


def _note(event: str) -> None:
    if _own.events[-1:] != [event]:
        _own.events.append(event)


class RecordedBackend(Toy):
    name: ClassVar[str] = "recorded"

    def priority(self, device: DeviceInfo) -> int:
        return -1000

    def forward(self, *args: Any, **options: Any) -> TileOutput:
        _note("compute")
        return super().forward(*args, **options)

    def backward(self, *args: Any, **options: Any) -> Grads:
        _note("compute")
        return super().backward(*args, **options)


class RecordedCommunicator(Communicator):
    name: ClassVar[str] = "recorded"

    def probe(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def priority(self, device: DeviceInfo) -> int:
        return -1000

    def open(self, group: Any, device: torch.device) -> Exchange:
        return _RecordedExchange(ToyCommunicator().open(group, device))


class _RecordedExchange(Exchange):
    def __init__(self, inner: Exchange) -> None:
        self._inner = inner
        self.rank, self.world_size = inner.rank, inner.world_size

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        pending = self._inner.post(sends, receives)
        self.bytes_sent, self.bytes_received = self._inner.bytes_sent, self._inner.bytes_received
        (receive,) = receives
        # Rows come from below, and what comes from above are gradients of rows that were sent.
        below = (self.rank - receive.step) % self.world_size
        what = f"{'rows' if receive.peer == below else 'gradients'} {receive.step}"
        _note(f"post {what}")
        return _RecordedPending(pending, what)


class _RecordedPending(Pending):
    def __init__(self, inner: Pending, what: str) -> None:
        self._inner, self._what = inner, what

    def wait(self) -> None:
        self._inner.wait()
        _note(f"wait {self._what}")


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    return [RecordedBackend()]


@hookimpl
def ringspan_communicators() -> Sequence[Communicator]:
    return [RecordedCommunicator()]
