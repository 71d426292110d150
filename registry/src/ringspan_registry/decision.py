"""What was chosen, from where the wish came, and why every other candidate was not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Any

__all__ = ["Candidate", "CandidateState", "Decision"]


class CandidateState(StrEnum):
    """How far a candidate came."""

    CHOSEN = "chosen"
    ELIGIBLE = "eligible"
    """It could have run; another one was preferred."""
    NOT_REQUESTED = "not requested"
    """Others were asked for by name, so this one was neither probed nor asked."""
    UNSUPPORTED = "unsupported"
    """The problem oversteps what it declares."""
    UNAVAILABLE = "unavailable"
    """Its probe says that it cannot run on this device."""
    FAULTY = "faulty"
    """It raised an exception while it was asked."""
    QUARANTINED = "quarantined"
    """It failed at work, and is not used again in this process."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One provider in one decision, with every reason against it."""

    name: str
    plugin: str
    distribution: str
    state: CandidateState
    reasons: tuple[str, ...] = ()
    remedy: str = ""
    version: str = ""
    """Of the distribution."""
    traceback: str = dataclasses.field(default="", repr=False)

    def __str__(self) -> str:
        return ": ".join(part for part in (self.name, self.state, "; ".join(self.reasons)) if part)


@dataclass(frozen=True, slots=True)
class Decision:
    """Which provider serves a class of problems on a device, and why.

    `chosen` is empty where nothing can serve; such a decision is only seen as
    `NoEligibleProvider.decision`. Survives pickling as long as the problem does.
    """

    kind: str
    problem: Any
    requested: tuple[str, ...]
    source: str
    """`"call"`, `"context"`, `"environment"`, `"default"` or the path of a file."""
    chosen: str
    plugin: str
    distribution: str
    version: str
    candidates: tuple[Candidate, ...]
    """In order of preference."""

    def as_dict(self) -> dict[str, Any]:
        """The decision as data that JSON can write."""
        return {name: _plain(getattr(self, name)) for name in _FIELDS}

    def __str__(self) -> str:
        requested = f"{', '.join(self.requested)} (from {self.source})"
        lines = [f"{self.kind}: {self.chosen or 'none'}, requested {requested}"]
        lines += [f"  {candidate}" for candidate in self.candidates]
        return "\n".join(lines)


_FIELDS = tuple(field.name for field in dataclasses.fields(Decision))


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return _plain(value.value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted((_plain(item) for item in value), key=repr)
    if isinstance(value, Iterable):
        return [_plain(item) for item in value]
    return str(value)
