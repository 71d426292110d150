"""Training under torchrun, of which one rank kills itself once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import uuid
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tests.failing.processes import MARK, end, left_after

__all__ = ["Restart", "restart", "undisturbed"]

TRAINER = Path(__file__).with_name("trainer.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
WORLD_SIZE = 3
STEPS = 6
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    # Otherwise the second attempt finds the first one's addresses in torchrun's own store, and
    # gloo cannot connect: https://github.com/pytorch/pytorch/issues/135712
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
PATIENCE = 200.0
"""Seconds for two attempts on a busy machine."""

Losses = dict[int, float]


@dataclass(frozen=True)
class Restart:
    """A run that lost a rank and began again."""

    exit_code: int
    output: str
    first: Losses
    """Of the attempt that failed, by step."""
    second: Losses
    orphans: list[int]

    def complaints(self, fatal_step: int) -> list[str]:
        """Everything that is not as it should be."""
        found = [f"process {orphan} remains" for orphan in self.orphans]
        if self.exit_code:
            found.append(f"torchrun ended with exit code {self.exit_code}\n{self.output}")
        if list(self.first) != list(range(fatal_step)):
            found.append(f"the first attempt made steps {list(self.first)}")
        if list(self.second) != list(range(fatal_step, STEPS)):
            found.append(f"the second attempt made steps {list(self.second)}")
        if self.first | self.second != undisturbed():
            found.append(f"losses {self.first | self.second} instead of {undisturbed()}")
        return found


def restart(victim: int, fatal_step: int) -> Restart:
    """Trains; rank `victim` kills itself in the middle of a step, and torchrun starts anew."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as name:
        try:
            done = _train(Path(name), mark, victim, fatal_step)
            attempts = _losses(Path(name))
            return Restart(
                done.returncode,
                done.stdout + done.stderr,
                attempts.get("0", {}),
                attempts.get("1", {}),
                left_after(mark, 2.0),
            )
        finally:
            end(mark)


@lru_cache(maxsize=1)
def undisturbed() -> Losses:
    """The losses by step of a run in which nothing happens."""
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as name:
        try:
            done = _train(Path(name), mark)
            if done.returncode:
                raise ChildProcessError(done.stderr)
            return _losses(Path(name))["0"]
        finally:
            end(mark)


def _train(folder: Path, mark: str, *victim_and_step: int) -> subprocess.CompletedProcess[str]:
    options = [f"--nproc-per-node={WORLD_SIZE}", "--max-restarts=1"]
    arguments = [str(folder), str(STEPS), *map(str, victim_and_step)]
    return subprocess.run(
        [*TORCHRUN, *options, str(TRAINER), *arguments],
        env=os.environ | ENVIRONMENT | {MARK: mark},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def _losses(folder: Path) -> dict[str, Losses]:
    written = json.loads((folder / "losses.json").read_text())
    return {
        attempt: {int(step): loss for step, loss in losses.items()}
        for attempt, losses in written.items()
    }
