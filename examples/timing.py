"""How the examples measure time: functions in turn, in one process, and medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

__all__ = ["medians"]

Name = TypeVar("Name", bound=Hashable)


def medians(functions: Mapping[Name, Callable[[], object]], rounds: int) -> dict[Name, float]:
    """Median seconds of each function, after one call of each to warm up.

    In every round each has its turn, and every round begins with another one, so that a machine
    that is busy for a while does not slow down one of them alone.
    """
    names = list(functions)
    for name in names:
        functions[name]()
    times: dict[Name, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            functions[name]()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(found) for name, found in times.items()}
