"""Ranks launched plainly, with nobody to look after them, of which one is killed or stopped."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.failing.processes import MARK, end, free_port, left_after

__all__ = ["TIMEOUT", "Interruption", "Report", "interrupt"]

RANK = Path(__file__).with_name("rank.py")
WORLD_SIZE = 4
TIMEOUT = 5.0
"""Of the group, in seconds."""
GRACE = 2.0
"""Seconds after the timeout within which every survivor reports."""
PATIENCE = 200.0
"""Seconds for processes to start on a busy machine, or to end."""


@dataclass(frozen=True)
class Report:
    """How one survivor ended."""

    exit_code: int
    stderr: str
    seconds: float
    """From the signal to the report."""
    error: dict[str, Any]


@dataclass(frozen=True)
class Interruption:
    """What became of a ring after one of its ranks got a signal in the middle of a step."""

    victim: int
    store: str
    survivors: dict[int, Report]
    orphans: list[int]

    def complaints(self) -> list[str]:
        """Everything that is not as it should be."""
        found = [f"process {orphan} remains" for orphan in self.orphans]
        for rank, report in self.survivors.items():
            found += [f"rank {rank}: {each}" for each in _complaints(rank, report)]
            # With the store gone a rank may know no more than which of its peers left it.
            if self.victim != report.error.get("peer") and (self.victim, self.store) != (0, "tcp"):
                found.append(f"rank {rank} does not name rank {self.victim}")
        return found


def _complaints(rank: int, report: Report) -> list[str]:
    error, found = report.error, []
    if error.get("kind") not in ("PeerLost", "RingTimeout"):
        return [f"it reported {error or 'nothing'}\n{report.stderr}"]
    if error["rank"] != rank or error["peer"] not in set(range(WORLD_SIZE)) - {rank}:
        found.append(f"it names rank {error['rank']} and peer {error['peer']}")
    if error["direction"] not in ("send", "receive") or not 0 <= error["step"] < WORLD_SIZE:
        found.append(f"it names direction {error['direction']} and step {error['step']}")
    if report.seconds > TIMEOUT + GRACE:
        found.append(f"it reported after {report.seconds:.1f} s")
    if report.exit_code != 1 or error["text"] not in report.stderr.strip().splitlines()[-1]:
        found.append(f"it ended with exit code {report.exit_code}\n{report.stderr}")
    if "frame #" in report.stderr:
        found.append(f"it shows frames of torch\n{report.stderr}")
    return found


def interrupt(
    victim: int,
    *,
    store: str = "tcp",
    ordering: str = "zigzag",
    how: signal.Signals = signal.SIGKILL,
    seed: int = 0,
) -> Interruption:
    """Trains on four ranks and sends one of them a signal at a random moment.

    Args:
        victim: that rank.
        store: `"tcp"`, which lives in rank 0, or `"file"`.
        ordering: of the layout; `"none"`: each call asks how many rows every rank holds.
        how: the signal.
        seed: of the moment.
    """
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            ranks = _started(folder, store, ordering, mark)
            _wait_for_steps(folder, ranks, 3)
            time.sleep(random.Random(seed).uniform(0, 0.2))
            ranks[victim].send_signal(how)
            signalled = time.monotonic()
            survivors = {
                rank: _report(folder, rank, process, signalled)
                for rank, process in enumerate(ranks)
                if rank != victim
            }
            ranks[victim].kill()
            ranks[victim].wait()
            return Interruption(victim, store, survivors, left_after(mark, 1.0))
        finally:
            end(mark)


def _started(folder: Path, store: str, ordering: str, mark: str) -> list[subprocess.Popen[str]]:
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "WORLD_SIZE": str(WORLD_SIZE),
        MARK: mark,
    }
    method = "env://" if store == "tcp" else (folder / "store").as_uri()
    return [
        subprocess.Popen(
            [sys.executable, str(RANK), str(folder), method, str(TIMEOUT), ordering],
            env=environment | {"RANK": str(rank)},
            stderr=(folder / f"{rank}.stderr").open("w"),
            text=True,
        )
        for rank in range(WORLD_SIZE)
    ]


def _wait_for_steps(folder: Path, ranks: list[subprocess.Popen[str]], count: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while not all(_steps(folder / f"{rank}.steps") >= count for rank in range(len(ranks))):
        for rank, process in enumerate(ranks):
            if process.poll() is not None:
                raise ChildProcessError((folder / f"{rank}.stderr").read_text())
        if time.monotonic() > deadline:
            raise TimeoutError(f"the ranks made no {count} steps within {PATIENCE} s")
        time.sleep(0.01)


def _steps(path: Path) -> int:
    return int((path.read_text() if path.exists() else "") or 0)


def _report(folder: Path, rank: int, process: subprocess.Popen[str], signalled: float) -> Report:
    process.wait(PATIENCE)
    path = folder / f"{rank}.json"
    error = json.loads(path.read_text()) if path.exists() else {}
    return Report(
        process.returncode,
        (folder / f"{rank}.stderr").read_text(),
        error.get("at", time.monotonic()) - signalled,
        error,
    )
