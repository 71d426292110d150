"""Kills and restarts, again and again: `python -m benchmarks.soak --kills 20 --restarts 3`."""

from __future__ import annotations

import argparse
import subprocess
import sys

from tests.failing import plain, torchrun


def kill(number: int) -> tuple[str, list[str]]:
    """Each rank in turn, with either store; returns what happened, and what should not have."""
    victim, store = number % plain.WORLD_SIZE, ("tcp", "file")[number // plain.WORLD_SIZE % 2]
    ordering = ("zigzag", "none")[number // (2 * plain.WORLD_SIZE) % 2]
    found = plain.interrupt(victim, store=store, ordering=ordering, seed=number)
    reports = ", ".join(
        f"{rank}: {report.error.get('kind')} of {report.error.get('peer')} "
        f"after {report.seconds:.1f} s"
        for rank, report in found.survivors.items()
    )
    return (
        f"kill -9 of rank {victim}, {store} store, layout {ordering} | {reports}",
        found.complaints(),
    )


def restart(number: int) -> tuple[str, list[str]]:
    """Each rank in turn dies in another step."""
    victim, fatal_step = number % torchrun.WORLD_SIZE, 1 + number % (torchrun.STEPS - 1)
    found = torchrun.restart(victim, fatal_step)
    losses = list((found.first | found.second).values())
    what = f"torchrun: rank {victim} dies in step {fatal_step} | last loss {losses[-1:]}"
    return what, found.complaints(fatal_step)


def main() -> int:
    """Prints a line for every trial, and how many went well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--restarts", type=int, default=3)
    options = parser.parse_args()
    good = 0
    for name, trial, times in (
        ("kills", kill, options.kills),
        ("restarts", restart, options.restarts),
    ):
        well = 0
        for number in range(times):
            try:
                what, complaints = trial(number)
            except (TimeoutError, ChildProcessError, subprocess.TimeoutExpired) as error:
                what, complaints = "it did not come about", [str(error)]
            well += not complaints
            print(f"{number + 1:3} | {'FAILED' if complaints else 'ok':6} | {what}", flush=True)
            for each in complaints:
                print(f"    {each}", flush=True)
        print(f"{name}: {well} of {times}\n", flush=True)
        good += well
    return 0 if good == options.kills + options.restarts else 1


if __name__ == "__main__":
    sys.exit(main())
