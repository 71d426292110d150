"""Measured times: each provider is timed once per problem, shape, device and versions."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from ringspan_registry.errors import CannotMeasure, ConfigurationError
from ringspan_registry.measurements import MeasurementFile, Subject

__all__ = ["Timing", "Timings", "software"]

_logger = logging.getLogger("ringspan")

Rival: TypeAlias = tuple[Subject, Callable[[], float]]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds, and where they are from."""

    seconds: float
    cached: bool

    @property
    def origin(self) -> str:
        """In words."""
        return "cached" if self.cached else "measured now"


class Timings:
    """Seconds per subject: in memory, and in a file for later processes.

    A file that cannot be used is warned about once; times are then kept in memory alone.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._known: dict[Subject, Timing] = {}
        self._warned: set[Path] = set()

    def of(
        self, rivals: Mapping[str, Rival], file: MeasurementFile
    ) -> dict[str, Timing | Exception]:
        """The time of every rival, measured where it is not known; or what measuring it raised.

        Raises:
            CannotMeasure: nothing can be measured now.
        """
        with self._lock:  # one measurement at a time: two would slow each other down
            if any(subject not in self._known for subject, _ in rivals.values()):
                self._recall(file)
            before = set(self._known)
            found = {name: self._timed(*rival) for name, rival in rivals.items()}
            new = {each: self._known[each].seconds for each in self._known.keys() - before}
            if new:
                self._keep(new, file)
        return found

    def _timed(self, subject: Subject, measure: Callable[[], float]) -> Timing | Exception:
        if subject not in self._known:
            try:
                seconds = float(measure())
                if not 0 <= seconds < math.inf:
                    raise ValueError(f"expected seconds, got {seconds}")
            except CannotMeasure:
                raise
            except Exception as error:  # noqa: BLE001 - third-party code; told as its fault
                return error
            self._known[subject] = Timing(seconds, cached=False)
        return self._known[subject]

    def _recall(self, file: MeasurementFile) -> None:
        try:
            found = file.read()
        except ConfigurationError as error:
            self._warn(file, error)
            return
        for subject, seconds in found.items():
            self._known.setdefault(subject, Timing(seconds, cached=True))

    def _keep(self, new: Mapping[Subject, float], file: MeasurementFile) -> None:
        try:
            file.add(new)
        except ConfigurationError as error:
            self._warn(file, error)

    def _warn(self, file: MeasurementFile, error: ConfigurationError) -> None:
        if file.path not in self._warned:
            self._warned.add(file.path)
            _logger.warning("autotune: times are kept in memory alone. %s", error)


def software(device_type: str) -> str:
    """Versions of torch and of what it stands on; on a CPU also the number of threads."""
    try:
        import torch
    except ImportError:
        return ""
    cudnn: Any = torch.backends.cudnn
    facts = {
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version() if device_type == "cuda" else None,
        "triton": _version_of("triton"),
        "threads": torch.get_num_threads() if device_type == "cpu" else None,
    }
    return ", ".join(f"{name} {fact}" for name, fact in facts.items() if fact)


def _version_of(distribution: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""
