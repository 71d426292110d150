"""Several functions timed in turn, so that a machine's moods meet all of them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from benchmarks.measure import seconds

__all__ = ["Turns"]

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Turns:
    """Seconds of each function, round by round."""

    samples: dict[str, list[float]]

    @classmethod
    def of(cls, functions: Mapping[str, Callable[[], object]], rounds: int) -> Turns:
        """Times all of them, after a warm-up of each; every other round goes backwards."""
        for function in functions.values():
            function()
        samples: dict[str, list[float]] = {name: [] for name in functions}
        for turn in range(rounds):
            for name in list(functions)[:: 1 if turn % 2 == 0 else -1]:
                samples[name].append(seconds(functions[name], CPU))
        return cls(samples)

    def ratio(self, name: str, base: str) -> float:
        """The median of the rounds' ratios."""
        rounds = zip(self.samples[name], self.samples[base], strict=True)
        return statistics.median(a / b for a, b in rounds)

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.samples[name])
