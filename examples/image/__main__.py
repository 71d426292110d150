"""`python -m examples.image`: prints the tables, and draws pictures where asked to."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.image.problem import Problem
from examples.image.report import reported
from examples.machine import machine


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(prog="python -m examples.image", description=__doc__)
    parser.add_argument("--out", type=Path, help="a folder for pictures (needs matplotlib)")
    parser.add_argument("--size", type=int, help="tokens along each side of the image")
    parser.add_argument("--quick", action="store_true", help="a small part, in a few seconds")
    given = parser.parse_args()
    sizes = {} if given.size is None else {"size": given.size}
    problem = Problem.quick(**sizes) if given.quick else Problem(**sizes)
    sys.stdout.write(f"{machine()}\n")
    for table in reported(problem):
        sys.stdout.write(f"\n{table}\n")
    if given.out is not None:
        from examples.image.pictures import draw

        given.out.mkdir(parents=True, exist_ok=True)
        for path in draw(problem, given.out):
            sys.stdout.write(f"wrote {path}\n")


if __name__ == "__main__":
    main()
