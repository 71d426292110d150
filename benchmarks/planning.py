"""How long a plan takes, and how much memory a long call.

    python benchmarks/planning.py [--repeats 15] [--out FILE.json]
    python benchmarks/planning.py --memory [--out FILE.json]

The first plans a million tokens, whole and packed from 1,000 documents of random lengths: the
median of the repeats, each planned anew. The second runs `Dilated` forward and backward on 262,144
tokens (8 heads of 64 dimensions, bfloat16, segments of 2,048 .. 32,768 tokens) and reports
the most memory that the process ever held.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
from pathlib import Path
from typing import Any

import numpy as np
import ringspan as rs
import torch
from measure import seconds
from overhead import environment
from ringspan.plan.schedule import make_plan

N, DOCUMENTS, HEADS = 2**20, 1000, 16
LONGNET = rs.Dilated((2048, 4096, 8192, 16384, 32768), (1, 2, 4, 8, 16))
PATTERNS = {
    "Dense()": rs.Dense(),
    "Dilated (w = 2048 .. 32768, r = 1 .. 16)": LONGNET,
    "Dense(window=(127, 0))": rs.Dense(window=(127, 0)),
}
LIMIT_SECONDS = 0.05
LONG, LIMIT_GB = 262_144, 6.0
CPU = torch.device("cpu")


def packed() -> rs.Documents:
    """1,000 documents of random lengths, a million tokens in all."""
    cuts = np.sort(np.random.default_rng(0).choice(np.arange(1, N), DOCUMENTS - 1, replace=False))
    return rs.Documents.from_cu_seqlens(np.concatenate([[0], cuts, [N]]))


def planning(repeats: int) -> list[dict[str, Any]]:
    """Seconds to plan each pattern, whole and in documents."""
    figures = []
    for name, pattern in PATTERNS.items():
        for documents in (None, packed()):

            def plan(
                pattern: rs.Dense | rs.Dilated = pattern, documents: rs.Documents | None = documents
            ) -> object:
                return make_plan(
                    pattern,
                    causal=True,
                    heads=HEADS,
                    kv_heads=HEADS,
                    layout=rs.Layout(N),
                    rank=0,
                    documents=documents,
                )

            plan()
            times = [seconds(plan, CPU) for _ in range(repeats)]
            median = statistics.median(times)
            figures.append(
                {
                    "pattern": name,
                    "documents": 1 if documents is None else len(documents),
                    "seconds": median,
                    "all_seconds": times,
                    "limit": LIMIT_SECONDS,
                    "met": median <= LIMIT_SECONDS,
                }
            )
    return figures


def memory() -> dict[str, Any]:
    """The peak of the process's resident memory over a forward and a backward pass."""
    torch.manual_seed(0)
    shape = (1, LONG, 8, 64)
    q, k, v, grad_out = (torch.randn(shape, dtype=torch.bfloat16) for _ in range(4))
    leaves = [x.requires_grad_() for x in (q, k, v)]

    def run() -> None:
        out = rs.attention(q, k, v, pattern=LONGNET, causal=True)
        torch.autograd.grad(out, leaves, grad_out)

    took = seconds(run, CPU)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    run_of = rs.last_run()
    return {
        "N": LONG,
        "backend": {name: d.chosen for name, d in run_of.decisions.items()} if run_of else {},
        "seconds": took,
        "resident_gigabytes": peak,
        "limit": LIMIT_GB,
        "met": peak <= LIMIT_GB,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of time")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    figures = [memory()] if options.memory else planning(options.repeats)
    report = {"environment": environment(CPU), "figures": figures}
    for figure in figures:
        shown = {name: value for name, value in figure.items() if name != "all_seconds"}
        print(json.dumps(shown))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(figure["met"] for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())
