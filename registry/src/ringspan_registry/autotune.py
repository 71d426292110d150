"""Measured times, kept in memory: each provider is timed once per problem and device."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable

from ringspan_registry.provider import Provider

__all__ = ["Timings"]


class Timings:
    """Seconds per (problem, provider), measured on first use."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._seconds: dict[tuple[Hashable, str], float] = {}

    def seconds(
        self, problem: Hashable, provider: Provider, measure: Callable[[Provider], float]
    ) -> float:
        """The provider's time for `problem`; what `measure` raises passes through, unkept."""
        key = (problem, provider.name)
        with self._lock:  # one measurement at a time: two would slow each other down
            if key not in self._seconds:
                self._seconds[key] = measure(provider)
            return self._seconds[key]
