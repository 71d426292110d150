"""What was found, as JSON and as a table."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from ringspan_registry import detect

import ringspan
from ringspan.bench.configuration import Configuration, LeftOut
from ringspan.catalogue import catalogue

if TYPE_CHECKING:
    from ringspan.bench.accuracy import Errors
    from ringspan.bench.measuring import Count, Sample
    from ringspan.bench.problem import Forecast
    from ringspan.bench.settings import Settings
    from ringspan.bench.world import World

__all__ = ["Report", "Row", "environment"]

_LEGEND = (
    "pattern along: the order along which a pattern is taken. Another order is another attention.",
    "stored: the order in which tokens lie in memory and go to ranks. The result stays the same.",
    "Seconds of the slowest rank, median (least .. most) of all timed calls. Memory and bytes of "
    "the rank that has most, per call.",
    "error: the largest of output and gradients, relative to one process in float64 / the same of "
    "one process in the benchmark's dtype.",
)


@dataclass(frozen=True, slots=True)
class Row:
    """One configuration at one length: measured, or why not."""

    tokens: int
    configuration: Configuration
    skipped: str = ""
    forecast: Forecast | None = None
    count: Count | None = None
    samples: tuple[Sample, ...] = ()

    @property
    def bytes_as_planned(self) -> bool:
        """Whether every rank received what the plan says, forward and backward."""
        if self.forecast is None or self.count is None:
            return True
        return (self.forecast.received_forward, self.forecast.received) == (
            self.count.received_forward,
            self.count.received,
        )

    @property
    def alarm(self) -> str:
        """Stands behind bytes that are not those of the plan."""
        return "" if self.bytes_as_planned else " UNPLANNED"


@dataclass(slots=True)
class Report:
    """All that a benchmark found so far."""

    settings: Settings
    environment: dict[str, Any]
    left_out: list[LeftOut] = field(default_factory=list)
    errors: dict[Configuration, Errors] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)
    failure: str = ""

    @property
    def measured(self) -> list[Row]:
        """The rows with figures."""
        return [row for row in self.rows if row.samples]

    def as_dict(self) -> dict[str, Any]:
        """As data that JSON can write."""
        return {
            "benchmark": "ringspan.bench.ring",
            "environment": self.environment,
            "settings": self.settings.as_dict(),
            "left_out": [asdict(each) for each in self.left_out],
            "failure": self.failure,
            "results": [self._result(row) for row in self.rows],
        }

    def save(self) -> None:
        """Writes all of it where the settings say, if they do."""
        if self.settings.json is not None:
            self.settings.json.parent.mkdir(parents=True, exist_ok=True)
            self.settings.json.write_text(json.dumps(self.as_dict(), indent=1) + "\n")

    def __str__(self) -> str:
        lines = [*_table([_HEADER, *(self._cells(row) for row in self.rows)]), "", *_LEGEND]
        lines += [f"left out: {each.what}: {each.why}" for each in self.left_out]
        lines += [
            f"bytes differ from the plan: {row.configuration} at {row.tokens} tokens"
            for row in self.rows
            if row.alarm
        ]
        if self.failure:
            lines.append(f"failed: {self.failure}")
        return "\n".join(lines)

    def _result(self, row: Row) -> dict[str, Any]:
        errors = self.errors.get(row.configuration)
        result = {"tokens": row.tokens} | asdict(row.configuration)
        result |= {"skipped": row.skipped, "plan": row.forecast and asdict(row.forecast)}
        if not row.samples or row.count is None:
            return result
        return result | {
            "seconds": {
                name: _spread([getattr(sample, name) for sample in row.samples])
                for name in ("forward", "backward", "call")
            },
            "tokens_per_second": self._speed(row),
            "counted": asdict(row.count),
            "bytes_as_planned": row.bytes_as_planned,
            "errors": errors and asdict(errors),
        }

    def _speed(self, row: Row) -> float:
        seconds = statistics.median(sample.call for sample in row.samples)
        return row.tokens * self.settings.batch / seconds

    def _cells(self, row: Row) -> tuple[str, ...]:
        names = row.configuration
        first = (str(row.tokens), names.pattern, names.along, names.stored, names.communicator)
        if row.count is None:
            return (*first, f"skipped: {row.skipped}")
        errors = self.errors.get(names)
        return (
            *first,
            _seconds(row, "forward"),
            _seconds(row, "backward") if self.settings.backward else "-",
            f"{self._speed(row):,.0f}",
            f"{max(row.count.peak) / 2**20:,.1f}",
            f"{max(row.count.received) / 2**20:,.2f}{row.alarm}",
            f"{max(errors.ring.values()):.1e} / {max(errors.one_process.values()):.1e}"
            if errors
            else "-",
        )


_HEADER = (
    "tokens",
    "pattern",
    "pattern along",
    "stored",
    "communicator",
    "forward s",
    "backward s",
    "tokens/s",
    "peak MiB",
    "received MiB",
    "error",
)


def environment(world: World, dtype: torch.dtype) -> dict[str, Any]:
    """Where it ran, and what with. A collective."""
    device = detect(world.device)
    backends = "" if world.group is None else torch.distributed.get_backend_config(world.group)
    return {
        "ringspan": ringspan.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "plugins": {record.name: record.version for record in catalogue().plugins()},
        "world_size": world.size,
        "process_group": backends,
        "devices": world.from_all(f"{world.device} {device.name}".strip()),
        "driver": device.driver,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "dtype": str(dtype).removeprefix("torch."),
    }


def _spread(seconds: Sequence[float]) -> dict[str, Any]:
    return {
        "median": statistics.median(seconds),
        "least": min(seconds),
        "most": max(seconds),
        "samples": list(seconds),
    }


def _seconds(row: Row, name: str) -> str:
    times = [getattr(sample, name) for sample in row.samples]
    return f"{statistics.median(times):.3g} ({min(times):.3g} .. {max(times):.3g})"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns as wide as they have to be; a last cell that stands for several takes its room."""
    full = [row for row in rows if len(row) == len(_HEADER)]
    widths = [max(len(row[column]) for row in full) for column in range(len(_HEADER))]
    for row in rows:
        for column, cell in enumerate(row[:5]):
            widths[column] = max(widths[column], len(cell))
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for row in rows
    ]
