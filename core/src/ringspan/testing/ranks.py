"""Real processes, one per rank, joined over a file store.

Starting a rank costs seconds (it imports torch), so a ring stays up and serves many calls.
"""

from __future__ import annotations

import pickle
import tempfile
import time
import traceback
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Ring"]

_TIMEOUT = timedelta(seconds=60)


class Ring:
    """`world_size` processes in one group, which run the functions they are given.

    Args:
        world_size: how many.
        process_group: the backend of their group, as for `torch.distributed.init_process_group`.

    Example:
        >>> with contextlib.closing(Ring(2)) as ring:
        ...     ring.run(all_reduced, torch.ones(3))
    """

    def __init__(self, world_size: int, process_group: str = "gloo") -> None:
        self._folder = tempfile.TemporaryDirectory()
        store = str(Path(self._folder.name) / "store")
        context = mp.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_serve, args=(rank, world_size, process_group, store, theirs), daemon=True
            )
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    @property
    def usable(self) -> bool:
        """Whether every rank is up; one that failed is not, its group being in no known state."""
        return bool(self._processes) and all(process.is_alive() for process in self._processes)

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        timeout: float = 120,
        answers: int | None = None,
    ) -> list[Any]:
        """Calls `function(rank, *args)` on every rank and returns what each returned, by rank.

        Args:
            function: a module's function; it, its arguments and its result are pickled by value.
            args: passed on after the rank.
            timeout: seconds until the ring is given up.
            answers: how many of the first ranks must answer; the others may die. None: all.

        Raises:
            Exception: the first failure, as it was raised, with its rank and traceback as a note.
            ChildProcessError: a rank that must answer died.
            TimeoutError: it did not answer in time.
        """
        task = pickle.dumps((function, args))
        try:
            for pipe in self._pipes:
                pipe.send_bytes(task)
            expected = len(self._pipes) if answers is None else answers
            return self._collect(range(expected), time.monotonic() + timeout)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Ends every process."""
        for process in self._processes:
            process.kill()
            process.join()
        for pipe in self._pipes:
            pipe.close()
        self._processes, self._pipes = [], []
        self._folder.cleanup()

    def _collect(self, ranks: range, deadline: float) -> list[Any]:
        results: dict[int, Any] = {}
        while waiting := [rank for rank in ranks if rank not in results]:
            ready = wait([self._pipes[r] for r in waiting], timeout=deadline - time.monotonic())
            if not ready:
                raise TimeoutError(f"ranks {waiting} of {len(self._pipes)} did not answer in time")
            for rank in (r for r in waiting if self._pipes[r] in ready):
                results[rank] = self._result(rank, ranks)
        return [results[rank] for rank in ranks]

    def _result(self, rank: int, living: range) -> Any:
        try:
            result, error, trace = pickle.loads(self._pipes[rank].recv_bytes())
        except EOFError:
            self._processes[rank].join()
            self._raise_if_one_died(living)
            raise
        if error is not None:
            # A rank that dies makes its peers fail too, and they may be heard first.
            self._raise_if_one_died(living)
            error.add_note(f"on rank {rank} of {len(self._pipes)}:\n{trace}")
            raise error
        return result

    def _raise_if_one_died(self, living: range) -> None:
        wait([self._processes[rank].sentinel for rank in living], timeout=1)
        for rank in living:
            exitcode = self._processes[rank].exitcode
            if exitcode is not None:
                name = f"rank {rank} of {len(self._pipes)}"
                raise ChildProcessError(f"{name} ended with exit code {exitcode}")


def _serve(rank: int, world_size: int, process_group: str, store: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        process_group,
        init_method=f"file://{store}",
        rank=rank,
        world_size=world_size,
        timeout=_TIMEOUT,
    )
    while True:
        pipe.send_bytes(_answer(rank, pipe.recv_bytes()))


def _answer(rank: int, task: bytes) -> bytes:
    try:
        function, args = pickle.loads(task)
        return pickle.dumps((function(rank, *args), None, ""))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the caller gets to see it
        return _failure(error, traceback.format_exc())


def _failure(error: BaseException, trace: str) -> bytes:
    try:
        failure = pickle.dumps((None, error, trace))
        pickle.loads(failure)
    except Exception:  # noqa: BLE001 - an exception that cannot travel goes as its text
        return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), trace))
    return failure
