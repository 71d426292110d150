"""Measured times in a JSON file that processes share; what is not ours is never overwritten."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ringspan_registry.errors import ConfigurationError

__all__ = ["MeasurementFile", "Subject", "default_path", "text_of"]

_SCHEMA = "ringspan.autotune/1"
_MOST = 10_000
"""Times that a file keeps; the newest."""
_PATIENCE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Subject:
    """All that a measured time depends on, in words that another process finds again."""

    kind: str
    problem: str
    shape: str
    device: str
    compute_capability: str
    driver: str
    software: str
    """Versions of torch and of what it stands on."""
    provider: str
    distribution: str
    """With its version."""
    kernel: str
    """Version that the provider's probe found."""


@dataclass(frozen=True, slots=True)
class MeasurementFile:
    """A JSON file of measured seconds.

    A missing or empty file holds none. Writers replace the file in one go, after they have read
    what others wrote.
    """

    path: Path

    def read(self) -> dict[Subject, float]:
        """The seconds of every subject.

        Raises:
            ConfigurationError: it cannot be read, or is not such a file.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise self._refused("a readable file", error.strerror or str(error)) from error
        if not content.strip():  # what a machine that lost its power may leave
            return {}
        try:
            return _parsed(json.loads(content))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            got = f"something else ({type(error).__name__}: {error})"
            raise self._refused("measured times that Ringspan wrote", got) from error

    def add(self, seconds: Mapping[Subject, float]) -> None:
        """Merges times into what the file holds.

        Raises:
            ConfigurationError: it cannot be written, or what is there is not such a file.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _alone(self.path):
                merged = self.read()
                for subject in seconds:
                    merged.pop(subject, None)  # so that it counts as new
                self._replace(list({**merged, **seconds}.items())[-_MOST:])
        except OSError as error:
            raise self._refused("a writable file", error.strerror or str(error)) from error

    def clear(self) -> int:
        """Removes the file; says how many times it held.

        Raises:
            ConfigurationError: it cannot be removed, or is not such a file.
        """
        held = len(self.read())
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            raise self._refused("a file to remove", error.strerror or str(error)) from error
        return held

    def _replace(self, times: Iterable[tuple[Subject, float]]) -> None:
        records = [{**dataclasses.asdict(subject), "seconds": value} for subject, value in times]
        text = json.dumps({"schema": _SCHEMA, "measurements": records}, indent=1)
        beside = self.path.with_name(f".{self.path.name}.{uuid.uuid4().hex}")
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(self.path)
        finally:
            beside.unlink(missing_ok=True)

    def _refused(self, expected: str, got: str) -> ConfigurationError:
        return ConfigurationError(
            str(self.path),
            expected=expected,
            got=got,
            remedy="Remove it, or name another file as autotune_file",
        )


def default_path(application: str) -> Path:
    """The file in the platform's folder of caches."""
    import platformdirs

    return Path(platformdirs.user_cache_dir(application)) / "autotune.json"


def text_of(value: Any) -> str:
    """A value in words that are the same in every process.

    Fields that take no part in a dataclass's representation or equality are left out.
    """
    if isinstance(value, Enum):
        return text_of(value.value)
    if isinstance(value, str):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        told = (
            f"{field.name}={text_of(getattr(value, field.name))}"
            for field in dataclasses.fields(value)
            if field.repr and field.compare
        )
        return f"{type(value).__name__}({', '.join(told)})"
    if isinstance(value, tuple | list):
        return f"({', '.join(map(text_of, value))})"
    if isinstance(value, set | frozenset):
        return f"{{{', '.join(sorted(map(text_of, value)))}}}"
    return "" if value is None else repr(value)


def _parsed(content: Any) -> dict[Subject, float]:
    if content["schema"] != _SCHEMA:
        raise ValueError(f"schema {content['schema']!r}, not {_SCHEMA!r}")
    return dict(map(_record, content["measurements"]))


def _record(found: Mapping[str, Any]) -> tuple[Subject, float]:
    facts = dict(found)
    seconds = float(facts.pop("seconds"))
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{seconds} seconds")
    if not all(isinstance(fact, str) for fact in facts.values()):
        raise TypeError(f"a fact that is no text in {found!r}")
    return Subject(**facts), seconds


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps other writers out where the system can; after a second it goes on without.

    What two writers at once could lose is a time that is then measured again.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    lock = path.with_name(f".{path.name}.lock")
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < deadline:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:  # held by another, or a file system without locks
                time.sleep(0.005)
        yield
    finally:
        os.close(handle)
