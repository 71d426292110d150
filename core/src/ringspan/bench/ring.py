"""Time, memory and bytes of ring attention as sequences grow.

    torchrun --nproc-per-node 4 -m ringspan.bench.ring --max-tokens 524288 --compare
    python -m ringspan.bench.ring --max-tokens 65536

At each length every configuration is called in turn, several times; the slowest rank counts. What
would not fit in memory is not tried, and what took longer than the patience grows no further.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from ringspan.bench.accuracy import errors
from ringspan.bench.communicators import communicators
from ringspan.bench.configuration import Configuration, LeftOut, configurations
from ringspan.bench.measuring import counted, interleaved
from ringspan.bench.notes import during, told
from ringspan.bench.options import parsed
from ringspan.bench.problem import Attempt, attempted, operands
from ringspan.bench.report import Report, Row, environment
from ringspan.bench.settings import Settings
from ringspan.bench.world import World, joined, own_rank
from ringspan.contracts.errors import RingspanError

__all__ = ["main"]

_WRONG, _REFUSED = 1, 2


@dataclass(slots=True)
class Benchmark:
    """One benchmark, on one rank of those that take the same steps."""

    settings: Settings
    world: World
    found: tuple[Configuration, ...]
    report: Report
    ended: dict[Configuration, str] = field(default_factory=dict)
    """What grows no further, and why."""

    def run(self) -> None:
        """Measures all configurations at all lengths, each until it grows no further."""
        self._check()
        for N in self.settings.lengths:
            with during(f"at {N} tokens"):
                self.report.rows += self._rows(N)
            self._tell(N)

    def _check(self) -> None:
        """Compares with one process at a small length."""
        N = self.settings.check_tokens
        attempts = {each: attempted(each, N, self.settings, self.world) for each in self.found}
        self.report.left_out += [
            LeftOut(f"errors of {configuration}", attempt.refused)
            for configuration, attempt in attempts.items()
            if attempt.problem is None
        ]
        problems = [each.problem for each in attempts.values() if each.problem is not None]
        # The same seed on every rank: each has all rows, and takes its own.
        device = self.world.device
        full = operands(self.settings, N, device, self.world, self.settings.seed)
        self.report.errors |= errors(problems, full, self.world)

    def _rows(self, N: int) -> list[Row]:
        rows = {
            each: Row(N, each, skipped=f"grew no further: {self.ended[each]}")
            for each in self.found
            if each in self.ended
        }
        attempts = {
            each: attempted(each, N, self.settings, self.world)
            for each in self.found
            if each not in self.ended
        }
        for each, attempt in attempts.items():
            rows[each] = Row(N, each, attempt.refused, attempt.forecast)
            if attempt.refused:
                self.ended[each] = f"at {N} tokens {attempt.refused}"
        rows |= self._measured(N, {each: a for each, a in attempts.items() if a.problem})
        return [rows[each] for each in self.found]

    def _measured(self, N: int, attempts: dict[Configuration, Attempt]) -> dict[Configuration, Row]:
        settings, world = self.settings, self.world
        problems = [attempt.problem for attempt in attempts.values() if attempt.problem]
        if not problems:
            return {}
        # Shards are even in every order of storage, so one set of operands serves all.
        seed = settings.seed + 1 + world.rank
        places = {problem.place: problem.rows for problem in problems}
        given = {p: operands(settings, rows, p, world, seed) for p, rows in places.items()}
        calls = [(problem, given[problem.place]) for problem in problems]
        counts = [counted(*call, world) for call in calls]
        samples = interleaved(calls, world, settings.repeats, settings.patience)
        rows = {
            each: Row(N, each, "", attempt.forecast, count, times)
            for (each, attempt), count, times in zip(attempts.items(), counts, samples, strict=True)
        }
        for each, row in rows.items():
            slowest = max(sample.call for sample in row.samples)
            if slowest > settings.patience:
                self.ended[each] = f"{slowest:.3g} s at {N} tokens, --patience {settings.patience}"
        return rows

    def _tell(self, N: int) -> None:
        if self.world.rank == 0:
            measured = sum(row.tokens == N for row in self.report.measured)
            sys.stderr.write(f"{N} tokens: {measured} configurations measured\n")
            self.report.save()


def main(arguments: list[str]) -> int:
    """Runs on every rank; returns the exit status."""
    try:
        settings = parsed(arguments)
        with joined(settings) as world:
            return _report(settings, world)
    except RingspanError as refusal:
        # From every rank: torchrun may end rank 0 before it comes to speak.
        sys.stderr.write(f"rank {own_rank()}: error: {refusal}\n")
        return _REFUSED


def _report(settings: Settings, world: World) -> int:
    names, unable = communicators(settings, world)
    found, without_curve = configurations(settings, names)
    machine = environment(world, settings.dtype_on(world.device))
    report = Report(settings, machine, [*unable, *without_curve])
    try:
        with _ended_in_order():
            Benchmark(settings, world, found, report).run()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - it is told, with the rank
        report.failure = f"rank {world.rank} of {world.size}: {told(error)}"
        sys.stderr.write(f"{report.failure}\n")
    if world.rank == 0:
        report.save()
        sys.stdout.write(f"{report}\n")
    unplanned = any(row.alarm for row in report.rows)
    return 0 if report.measured and not unplanned and not report.failure else _WRONG


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """torchrun ends the ranks that are left when one failed: they say what was found until then."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt("the process was told to end")

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
