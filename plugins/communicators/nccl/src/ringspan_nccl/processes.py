"""Is a peer's process gone?

NCCL does not say: between GPUs of one machine it waits for a process that was killed as it does for
one that is slow. There the kernel knows, so ranks tell each other where they run.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Process"]

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Process:
    """A process, as others on its machine can look it up."""

    surroundings: str
    """Boot, process namespace and user; empty where the system does not say."""
    number: int
    started: str
    """In clock ticks since the boot: numbers are used again."""

    @classmethod
    def current(cls) -> Process:
        """This process."""
        state = _state(os.getpid())
        return cls(_surroundings(), os.getpid(), state[1] if state else "")

    @classmethod
    def parsed(cls, text: str) -> Process:
        """The inverse of `str`."""
        number, started, surroundings = text.split("|", 2)
        return cls(surroundings, int(number), started)

    def __str__(self) -> str:
        return f"{self.number}|{self.started}|{self.surroundings}"

    def is_gone(self) -> bool:
        """Whether it is known to have ended; False of a process on another machine."""
        if not self.surroundings or self.surroundings != _surroundings():
            return False
        state = _state(self.number)
        return state is None or state[0] in "ZX" or state[1] != self.started


def _state(number: int) -> tuple[str, str] | None:
    """The state of a process and when it started; None: there is no such process."""
    try:
        text = (_PROC / str(number) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in brackets may hold anything; the third field follows it, the 22nd is the start.
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def _surroundings() -> str:
    try:
        boot = (_PROC / "sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {(_PROC / 'self/ns/pid').readlink()} {os.getuid()}"
    except OSError:
        return ""
