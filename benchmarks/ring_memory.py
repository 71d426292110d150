"""The most tensor memory of a rank, forward and backward, beside that of one process.

    python benchmarks/ring_memory.py [--tokens 262144] [--dense-tokens 16384] [--out FILE.json]

8 heads of 64 dimensions, bfloat16, gloo processes on this machine: LongNet (w = 2048 .. N, r = 1 ..
16) on one process and on 4 ranks, there at three lengths; `Dense` on one process and on 4 ranks.
Inputs, results, buffers of messages and everything between are counted, by the profiler; a first
call of new processes, so that what is kept for later calls counts too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import ringspan as rs
import torch
import torch.distributed as dist
from measure import peak_bytes
from overhead import environment
from ringspan.testing.ranks import Ring

HEADS, HEAD_DIM = 8, 64
LIMITS = {"longnet": 0.32, "dense": 0.48}
CPU = torch.device("cpu")


def longnet(N: int) -> rs.Dilated:
    doublings = range((N // 2048).bit_length())
    return rs.Dilated(
        tuple(2048 << power for power in doublings), tuple(min(1 << p, 16) for p in doublings)
    )


def peak(rank: int, N: int, name: str) -> int:
    """What each rank does: its inputs, and the most that was alive during one step."""
    world_size = dist.get_world_size()
    layout = rs.Layout(N, world_size)
    shape = (1, layout.sizes[rank], HEADS, HEAD_DIM)
    *leaves, grad_out = (torch.randn(shape, dtype=torch.bfloat16) for _ in range(4))
    for x in leaves:
        x.requires_grad_()
    options: dict[str, Any] = {"pattern": longnet(N) if name == "longnet" else rs.Dense()}
    if world_size > 1:
        options |= {"layout": layout, "group": dist.group.WORLD}

    def step() -> object:
        out = rs.attention(*leaves, **options)
        return torch.autograd.grad(out, leaves, grad_out)

    return peak_bytes(step, CPU) + 4 * grad_out.nbytes


def measured(N: int, name: str, world_size: int) -> dict[str, Any]:
    with contextlib.closing(Ring(world_size)) as ring:
        peaks = ring.run(peak, N, name, timeout=3600)
    figure = {"pattern": name, "N": N, "world_size": world_size, "bytes": peaks}
    print(f"{name:8} N = {N:7} on {world_size}: {max(peaks) / 1e6:8.1f} MB a rank", flush=True)
    return figure


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=262_144)
    parser.add_argument("--dense-tokens", type=int, default=16_384)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    lengths = {"longnet": arguments.tokens, "dense": arguments.dense_tokens}
    ratios, figures = {}, []
    for name, N in lengths.items():
        alone, ring = measured(N, name, 1), measured(N, name, 4)
        ratios[name] = max(ring["bytes"]) / max(alone["bytes"])
        figures += [alone, ring]
    figures += [measured(arguments.tokens // share, "longnet", 4) for share in (2, 4)]
    for name, ratio in ratios.items():
        print(f"{name}: a rank of 4 needs {ratio:.3f} of one process (limit {LIMITS[name]})")
    report = {"environment": environment(CPU), "ratios": ratios, "limits": LIMITS}
    report["figures"] = figures
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")
    return int(any(ratio > LIMITS[name] for name, ratio in ratios.items()))


if __name__ == "__main__":
    sys.exit(main())
