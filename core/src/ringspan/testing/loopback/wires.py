"""Where the ranks of one loopback meet: messages by tag, collectives by order."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor

__all__ = ["Address", "Delivery", "Meeting", "Wires", "copy_bits"]


class Address(NamedTuple):
    """What a message is matched by. Source and target are ranks of the group."""

    group: str
    source: int
    target: int
    tag: int

    def __str__(self) -> str:
        return f"the message of rank {self.source} to rank {self.target} with tag {self.tag}"


class Delivery(dist.Work):
    """One end of a message: done once the other end has been posted too."""

    def __init__(self, address: Address, tensor: Tensor, timeout: float) -> None:
        super().__init__()
        self.tensor: Tensor | None = tensor
        self._address, self._timeout = address, timeout
        self._done = threading.Event()
        self._error = ""

    def finish(self, error: str = "") -> None:
        """Lets go of the tensor and of who waits."""
        self.tensor, self._error = None, error
        self._done.set()

    def is_completed(self) -> bool:
        """Whether waiting would return, or raise, at once."""
        return self._done.is_set()

    def wait(self, timeout: Any = None) -> bool:
        """Returns when the message has crossed.

        Raises:
            RuntimeError: the other end did not come in time, has another size, or a rank failed.
        """
        if not self._done.wait(_seconds(timeout, self._timeout)):
            raise RuntimeError(f"Timed out waiting for {self._address}")
        if self._error:
            raise RuntimeError(self._error)
        return True


class Meeting(dist.Work):
    """One collective: done once every rank of the group has entered it."""

    def __init__(
        self,
        wires: Wires,
        key: _Key,
        rank: int,
        finish: Callable[[list[list[Tensor]]], None],
        timeout: float,
    ) -> None:
        super().__init__()
        self._wires, self._key, self._rank, self._timeout = wires, key, rank, timeout
        self._finish: Callable[[list[list[Tensor]]], None] | None = finish

    def wait(self, timeout: Any = None) -> bool:
        """Returns when this rank's result is there.

        Raises:
            RuntimeError: a rank did not come in time, came with another collective, or failed.
        """
        if self._finish is not None:
            patience = _seconds(timeout, self._timeout)
            self._finish(self._wires.everyone(self._key, self._rank, patience))
            self._finish = None
        return True


_Key: TypeAlias = tuple[str, int]
_Posted: TypeAlias = dict[Address, deque[Delivery]]


@dataclass
class _Round:
    """What the ranks bring to one collective."""

    size: int
    brought: dict[int, tuple[str, list[Tensor]]] = field(default_factory=dict)
    taken: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    """Everybody is there, or will never be."""


class Wires:
    """Everything on its way between the threads of one loopback."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sends: _Posted = {}
        self._receives: _Posted = {}
        self._rounds: dict[_Key, _Round] = {}
        self._failure = ""

    @property
    def in_flight(self) -> int:
        """How many messages and collectives wait for another rank."""
        with self._lock:
            posted = (*self._sends.values(), *self._receives.values())
            return sum(map(len, posted)) + len(self._rounds)

    def send(self, address: Address, tensor: Tensor, timeout: float) -> Delivery:
        """Posts one end of a message; nothing is copied before the other end is there."""
        sent = Delivery(address, tensor, timeout)
        received = self._match(address, sent, self._sends, self._receives)
        if received is not None:
            _cross(address, sent, received)
        return sent

    def receive(self, address: Address, tensor: Tensor, timeout: float) -> Delivery:
        """Posts the other end."""
        received = Delivery(address, tensor, timeout)
        sent = self._match(address, received, self._receives, self._sends)
        if sent is not None:
            _cross(address, sent, received)
        return received

    def enter(self, key: _Key, rank: int, size: int, what: str, brings: list[Tensor]) -> None:
        """Brings tensors to a collective: the group's name, and its number in that group."""
        with self._lock:
            self._raise_if_failed()
            meeting = self._rounds.setdefault(key, _Round(size))
            meeting.brought[rank] = (what, brings)
            if len(meeting.brought) == size:
                meeting.over.set()

    def everyone(self, key: _Key, rank: int, timeout: float) -> list[list[Tensor]]:
        """What every rank brought, by rank, once all did.

        Raises:
            RuntimeError: as `Meeting.wait`.
        """
        meeting = self._rounds[key]
        meeting.over.wait(timeout)
        with self._lock:
            missing = sorted(set(range(meeting.size)) - set(meeting.brought))
            if missing:
                self._raise_if_failed()
                what, _ = meeting.brought[rank]
                raise RuntimeError(f"Timed out waiting for ranks {missing} to enter {what}")
            meeting.taken += 1
            if meeting.taken == meeting.size:
                del self._rounds[key]
        entered = {rank: what for rank, (what, _) in sorted(meeting.brought.items())}
        if len(set(entered.values())) > 1:
            raise RuntimeError(f"the ranks entered different collectives: {entered}")
        return [meeting.brought[rank][1] for rank in entered]

    def fail(self, why: str) -> None:
        """Ends all waiting but for what is complete, from now on. The first reason stays."""
        with self._lock:
            self._failure = self._failure or why
            for posted in (self._sends, self._receives):
                for delivery in (each for waiting in posted.values() for each in waiting):
                    delivery.finish(self._failure)
                posted.clear()
            for meeting in self._rounds.values():
                meeting.over.set()

    def raise_if_failed(self) -> None:
        """Raises the reason for which nothing travels any more."""
        with self._lock:
            self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        if self._failure:
            raise RuntimeError(self._failure)

    def _match(
        self, address: Address, mine: Delivery, ours: _Posted, theirs: _Posted
    ) -> Delivery | None:
        """The other end if it is there; messages of one address keep their order."""
        with self._lock:
            self._raise_if_failed()
            waiting = theirs.get(address)
            if not waiting:
                ours.setdefault(address, deque()).append(mine)
                return None
            other = waiting.popleft()
            if not waiting:
                del theirs[address]
            return other


def copy_bits(what: str, source: Tensor, target: Tensor) -> None:
    """Copies a tensor of the same shape and dtype.

    Raises:
        RuntimeError: it is another's.
    """
    if (source.shape, source.dtype) != (target.shape, target.dtype):
        raise RuntimeError(
            f"{what}: {list(source.shape)} of {source.dtype} came where "
            f"{list(target.shape)} of {target.dtype} were expected"
        )
    # Whether one of the ranks is in inference mode is not the wires' business.
    with torch.inference_mode():
        target.copy_(source)


def _cross(address: Address, sent: Delivery, received: Delivery) -> None:
    assert sent.tensor is not None
    assert received.tensor is not None
    error = ""
    try:
        copy_bits(str(address), sent.tensor, received.tensor)
    except RuntimeError as refusal:
        error = str(refusal)
    sent.finish(error)
    received.finish(error)


def _seconds(given: Any, default: float) -> float:
    """torch stands for no timeout of its own by one of zero."""
    return given.total_seconds() if given else default
