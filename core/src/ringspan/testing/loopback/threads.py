"""The threads of a loopback, and what they are asked to run."""

from __future__ import annotations

import contextvars
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

import torch
import torch.distributed as dist

from ringspan.contracts.errors import InvalidArgument
from ringspan.testing.loopback.group import BACKEND
from ringspan.testing.loopback.store import LoopbackStore
from ringspan.testing.loopback.wires import Wires
from ringspan.testing.loopback.world import leave, sit_down, worlds_per_thread

__all__ = ["Loopback"]

_LAST_WORDS = 5.0
"""Seconds that the threads have to end, once nothing keeps them waiting."""


class Loopback:
    """`world_size` threads of this process, each a rank in one group.

    Inside, `torch.distributed.group.WORLD` is the calling thread's own group, and messages,
    `all_gather`, `all_reduce`, `broadcast`, `barrier` and `new_group` do what they do between
    processes. What else belongs to the process belongs to all ranks: arguments are not copied,
    torch's generator is one, and no rank can die alone. Settings of the calling context hold in
    every rank, and a backward pass runs in its rank's own thread, on GPUs too.

    Args:
        world_size: how many.
        timeout: seconds that a rank waits for what another one owes it, before it is an error.

    Example:
        >>> with contextlib.closing(Loopback(8)) as loopback:
        ...     loopback.run(all_reduced, torch.ones(3))
    """

    def __init__(self, world_size: int, timeout: float = 30.0) -> None:
        if world_size < 1:
            raise InvalidArgument("world_size", expected="at least 1", got=repr(world_size))
        self._wires = Wires()
        self._store = LoopbackStore(self._wires)
        self._answers: _Answers = queue.SimpleQueue()
        self._inboxes: list[_Inbox] = [queue.SimpleQueue() for _ in range(world_size)]
        self._threads = [
            threading.Thread(
                target=_serve,
                args=(rank, world_size, timeout, self._store, self._wires, inbox, self._answers),
                name=f"rank {rank} of {world_size}",
                daemon=True,
            )
            for rank, inbox in enumerate(self._inboxes)
        ]
        self._start()

    @property
    def usable(self) -> bool:
        """Whether every rank is up; where one has failed, the others' messages are lost."""
        return bool(self._threads)

    @property
    def in_flight(self) -> int:
        """How many messages and collectives wait for another rank."""
        return self._wires.in_flight

    def run(self, function: Callable[..., Any], *args: Any, timeout: float = 120) -> list[Any]:
        """Calls `function(rank, *args)` on every rank and returns what each returned, by rank.

        Args:
            function: anything that can be called; the ranks share it and its arguments.
            args: passed on after the rank.
            timeout: seconds until the loopback is given up.

        Raises:
            Exception: the first failure, as it was raised, with its rank as a note. The other
                ranks' waiting ends with it, and so does this loopback.
            TimeoutError: a rank did not answer in time.
        """
        if not self.usable:
            raise InvalidArgument("loopback", expected="one that is up", got="one that was closed")
        try:
            with worlds_per_thread():
                for inbox in self._inboxes:
                    inbox.put(_Task(function, args, contextvars.copy_context()))
                return self._collect(time.monotonic() + timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends every thread that is not stuck in a computation of its own."""
        self._wires.fail("Connection closed: the loopback was closed")
        with worlds_per_thread():
            for inbox in self._inboxes:
                inbox.put(None)
            end = time.monotonic() + _LAST_WORDS
            for thread in self._threads:
                thread.join(max(0.0, end - time.monotonic()))
        self._threads, self._inboxes = [], []

    def _start(self) -> None:
        # torch has each process print its rank before an uncaught error; this one has no rank.
        hook = sys.excepthook
        try:
            with worlds_per_thread():
                for thread in self._threads:
                    thread.start()
                self._collect(time.monotonic() + _LAST_WORDS)
        except BaseException:
            self.close()
            raise
        finally:
            sys.excepthook = hook

    def _collect(self, deadline: float) -> list[Any]:
        results: dict[int, Any] = {}
        failure: BaseException | None = None
        size = len(self._threads)
        while waiting := [rank for rank in range(size) if rank not in results]:
            try:
                answer = self._answers.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                if failure is None:
                    failure = TimeoutError(f"ranks {waiting} of {size} did not answer in time")
                break
            results[answer.rank] = answer.result
            if answer.error is not None and failure is None:
                # The others' errors follow from this one; they have a moment to end.
                failure = answer.error
                failure.add_note(f"on rank {answer.rank} of {size}")
                deadline = min(deadline, time.monotonic() + _LAST_WORDS)
        if failure is not None:
            raise failure
        return [results[rank] for rank in range(size)]


@dataclass(frozen=True, slots=True)
class _Task:
    function: Callable[..., Any]
    args: tuple[Any, ...]
    context: contextvars.Context


@dataclass(frozen=True, slots=True)
class _Answer:
    rank: int
    result: Any = None
    error: BaseException | None = None


_Inbox: TypeAlias = "queue.SimpleQueue[_Task | None]"
_Answers: TypeAlias = "queue.SimpleQueue[_Answer]"


def _serve(
    rank: int,
    world_size: int,
    timeout: float,
    store: LoopbackStore,
    wires: Wires,
    inbox: _Inbox,
    answers: _Answers,
) -> None:
    sit_down(wires)

    def join(rank: int) -> None:
        dist.init_process_group(
            BACKEND,
            store=store,
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout),
        )

    # Otherwise a GPU's part of a backward pass runs in a thread that is no rank.
    with torch.autograd.set_multithreading_enabled(False):
        task: _Task | None = _Task(join, (), contextvars.copy_context())
        while task is not None:
            answers.put(_answer(rank, task, wires))
            # What was computed must not live until the next task comes.
            del task
            task = inbox.get()
    leave()


def _answer(rank: int, task: _Task, wires: Wires) -> _Answer:
    try:
        return _Answer(rank, task.context.run(task.function, rank, *task.args))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets to see it
        wires.fail(f"Connection closed by peer: rank {rank} failed with {error!r}")
        return _Answer(rank, error=error)
