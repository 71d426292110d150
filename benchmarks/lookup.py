"""What a call costs the host beside its kernels, where its plan and its decisions are known.

    python benchmarks/lookup.py [--repeats 200] [--out FILE.json]

Medians in microseconds of the parts of one operator call: reading the call and finding its plan,
and finding the decisions with their name for the backward pass. The limit is for both together.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ringspan as rs
import torch
from overhead import environment
from ringspan.engine.call import Call
from ringspan.engine.run import Tensors, prepare

LIMIT = 60.0
CALLS = {
    "dense, causal": Call(rs.Dense(), causal=True),
    "dilated, five branches": Call(
        rs.Dilated((2048, 4096, 8192, 16384, 32768), (1, 2, 4, 8, 16)), causal=True
    ),
    "window": Call(rs.Dense(window=(127, 0)), causal=True),
}


def microseconds(work: Callable[[], Any], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return 1e6 * statistics.median(times)


def figures(repeats: int) -> list[dict[str, Any]]:
    q = torch.zeros(1, 32768, 16, 1)
    found = []
    for name, call in CALLS.items():
        tensors, text = Tensors(q, q, q), call.text
        run = prepare(tensors, text, 32768)
        parts = {
            "plan": microseconds(lambda t=tensors, s=text: prepare(t, s, 32768), repeats),
            "decisions": microseconds(lambda r=run: r.choose().ticket, repeats),
        }
        total = sum(parts.values())
        found.append({"call": name, **parts, "total": total, "limit": LIMIT, "met": total <= LIMIT})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = figures(options.repeats)
    for each in found:
        print(json.dumps(each))
    if options.out is not None:
        record = {"environment": environment(torch.device("cpu")), "lookup": found}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
