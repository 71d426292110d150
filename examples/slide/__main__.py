"""`python -m examples.slide`: prints the tables."""

from __future__ import annotations

import argparse
import dataclasses
import sys

from examples.machine import machine
from examples.slide.problem import Problem
from examples.slide.report import reported


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(prog="python -m examples.slide", description=__doc__)
    parser.add_argument("--layers", type=int, help="of the encoder; GigaPath has 12")
    parser.add_argument("--embed-dim", type=int, help="channels; GigaPath has 768")
    parser.add_argument("--quick", action="store_true", help="a small part, in a few seconds")
    given = parser.parse_args()
    problem = Problem.quick() if given.quick else Problem()
    asked = {"layers": given.layers, "embed_dim": given.embed_dim}
    asked = {name: value for name, value in asked.items() if value is not None}
    problem = dataclasses.replace(problem, width=dataclasses.replace(problem.width, **asked))
    sys.stdout.write(f"{machine()}\n")
    for table in reported(problem):
        sys.stdout.write(f"\n{table}\n")


if __name__ == "__main__":
    main()
