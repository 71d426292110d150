"""When ordering helps: every figure of docs/guides/ordering.md, and the page itself.

    python -m benchmarks.ordering            # measures, writes results/ordering.json and the page
    python -m benchmarks.ordering --page     # writes the page anew from results/ordering.json
    python -m benchmarks.ordering --quick    # measures little, to see that it works; writes nothing

Counts are the same on every machine. Times are medians of calls that took turns, on this one.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from ringspan_registry import detect

from benchmarks import ordering_blocks, ordering_cost, ordering_mass, ordering_ring
from benchmarks.ordering_page import PAGE, rendered
from benchmarks.ordering_tables import Table, Target

__all__ = ["RESULTS", "measured"]

RESULTS = Path(__file__).with_name("results") / "ordering.json"
COUNTED = (ordering_mass, ordering_blocks, ordering_ring)


def measured(*, quick: bool = False) -> dict[str, Any]:
    """Everything as data: environment, tables, targets, and every sample of a time."""
    where, tables, samples = environment(), [], {}
    for table, found in figures(quick=quick):
        print(table.title, flush=True)
        tables.append(table)
        samples |= found
    return {
        "environment": where,
        "targets": [vars(target) for target in targets({table.name: table for table in tables})],
        "tables": [vars(table) for table in tables],
        "samples": samples,
    }


def figures(*, quick: bool) -> Iterator[tuple[Table, dict[str, Any]]]:
    """Every table, and the samples of its times."""
    for module in COUNTED:
        for table in module.tables(quick=quick):
            yield table, {}
    yield ordering_cost.invariance(16 if quick else 64), {}
    if not quick:
        yield ordering_blocks.timed(rounds=7)
        yield ordering_cost.moved(rounds=5)
        yield ordering_cost.orders(repeats=3), {}


def targets(found: dict[str, Table]) -> list[Target]:
    """Of all figures."""
    modules = (*COUNTED, ordering_cost)
    return [target for module in modules for target in module.targets(found)]


def environment() -> dict[str, Any]:
    """Where and when it was measured."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": detect(torch.device("cpu")).name,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="measure little and write nothing")
    parser.add_argument("--page", action="store_true", help="only write the page anew")
    options = parser.parse_args()
    record = json.loads(RESULTS.read_text()) if options.page else measured(quick=options.quick)
    wanted = [Target(**target) for target in record["targets"]]
    for target in wanted:
        print(*target.row, sep="  ")
    if not options.page and not options.quick:
        RESULTS.write_text(json.dumps(record, indent=1) + "\n")
    if not options.quick:
        PAGE.write_text(rendered(record))
    return 0 if all(target.met for target in wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
