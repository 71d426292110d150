"""Seconds and bytes of calls."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringspan.api import last_run
from ringspan.bench.memory import peak_bytes

if TYPE_CHECKING:
    from ringspan.bench.problem import Operands, Problem
    from ringspan.bench.world import World

__all__ = ["Count", "Sample", "counted", "interleaved"]


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of one call on the slowest rank."""

    forward: float
    backward: float
    call: float
    """Of both; at most their sum, for another rank may be the slowest in each."""


@dataclass(frozen=True, slots=True)
class Count:
    """What one call held and moved; lists have one entry per rank."""

    ran: dict[str, str]
    """What rank 0 decided: `"backend (full)"` -> `"manual"`, .."""
    peak: tuple[int, ...]
    """Bytes of tensors on the device, operands included that lie there."""
    resident: tuple[int, ...]
    """Of virtual ranks: bytes of tensors on the device at the peak; else 0."""
    sent: tuple[int, ...]
    received: tuple[int, ...]
    """Bytes in all passes; of virtual ranks, to the device."""
    received_forward: tuple[int, ...]


def counted(problem: Problem, given: Operands, world: World) -> Count:
    """Calls once, untimed, in a group of its own: its buffers are this call's alone."""
    runs = []
    with world.own_group() as group:

        def call() -> object:
            out = problem.forward(given, group)
            runs.append(last_run())
            return out, problem.backward(given, out)

        held = given.nbytes if problem.place == world.device else 0
        peak = held + peak_bytes(call, world.device)
    (run,) = runs
    assert run is not None, "a call has just run"
    passes = [each for each in (run, run.backward) if each is not None]
    own = (
        peak,
        max(each.bytes_resident for each in passes),
        sum(each.bytes_sent for each in passes),
        sum(each.bytes_received for each in passes),
        run.bytes_received,
    )
    ran = {name: decision.chosen for name, decision in run.decisions.items()}
    return Count(ran, *zip(*world.from_all(own), strict=True))


def interleaved(
    calls: Sequence[tuple[Problem, Operands]], world: World, repeats: int, patience: float
) -> list[tuple[Sample, ...]]:
    """Times all in turn, A B C, C B A, A B C, .., after a call of each that does not count.

    What took longer than the patience in that call is timed once.
    """
    turns = [1 if _timed(*call, world).call > patience else repeats for call in calls]
    samples: list[list[Sample]] = [[] for _ in calls]
    for turn in range(repeats):
        for which in _there_and_back(turn, len(calls)):
            if turn < turns[which]:
                samples[which].append(_timed(*calls[which], world))
    return [tuple(each) for each in samples]


def _there_and_back(turn: int, count: int) -> Iterable[int]:
    return range(count) if turn % 2 == 0 else reversed(range(count))


def _timed(problem: Problem, given: Operands, world: World) -> Sample:
    world.meet()
    start = time.perf_counter()
    out = problem.forward(given, world.group)
    world.settle()
    middle = time.perf_counter()
    problem.backward(given, out)
    world.settle()
    end = time.perf_counter()
    return Sample(*world.slowest(middle - start, end - middle, end - start))
