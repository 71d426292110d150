"""How figures are measured: interleaved pairs in one run, medians, the allocator's own count."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

__all__ = ["Pairs", "interleaved", "peak_bytes", "seconds"]


@dataclass(frozen=True)
class Pairs:
    """Seconds of two functions that ran in turn, A B A B .. ."""

    first: tuple[float, ...]
    second: tuple[float, ...]

    @property
    def ratios(self) -> list[float]:
        """First over second, pair by pair."""
        return [a / b for a, b in zip(self.first, self.second, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)


def interleaved(
    first: Callable[[], object], second: Callable[[], object], pairs: int, device: torch.device
) -> Pairs:
    """Times both, after a warm-up of each; every other pair starts with the second."""
    first(), second()
    times: tuple[list[float], list[float]] = ([], [])
    for pair in range(pairs):
        for which in (0, 1) if pair % 2 == 0 else (1, 0):
            times[which].append(seconds((first, second)[which], device))
    return Pairs(tuple(times[0]), tuple(times[1]))


def seconds(function: Callable[[], object], device: torch.device) -> float:
    """How long one call takes, the device's work included."""
    _settle(device)
    start = time.perf_counter()
    function()
    _settle(device)
    return time.perf_counter() - start


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors alive at once during `function`, above those before it."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = function()
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        kept = function()
    del kept
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak
