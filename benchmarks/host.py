"""A million tokens on virtual ranks: what is on the device at once, and what crosses to it.

    python benchmarks/host.py [--tokens 262144 524288 1048576] [--chunks 32768 65536] [--out FILE]

Runs LongNet's geometric pattern (causal; segments of 2,048, 4,096, .. N tokens, rates 1 .. 16, then
16) forward and backward with `communicator="host"`, whose bytes the library counts. What is
resident must not grow with the sequence: at each length at most 1.1 times what it is at the
shortest. The shortest is also computed whole, for the difference.

On a machine without a GPU the device is the CPU: bytes are those that a GPU would get and hold.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import ringspan as rs
import torch
from measure import seconds
from overhead import environment
from torch import Tensor

HEADS, HEAD_DIM = 1, 16
CPU = torch.device("cpu")
GROWTH = 1.1


def longnet(tokens: int) -> rs.Dilated:
    """Segments that double up to all tokens; rates that double up to 16."""
    count = (tokens // 2048).bit_length()
    return rs.Dilated(
        tuple(2048 << index for index in range(count)),
        tuple(min(1 << index, 16) for index in range(count)),
    )


def problem(tokens: int) -> tuple[Tensor, ...]:
    """q, k, v and an upstream gradient, in host memory."""
    draw = torch.Generator().manual_seed(0)
    shape = (1, tokens, HEADS, HEAD_DIM)
    tensors = [torch.randn(shape, generator=draw) for _ in range(4)]
    return *(x.requires_grad_() for x in tensors[:3]), tensors[3]


def measured(tokens: int, chunk: int) -> dict[str, Any]:
    """Bytes and seconds of one forward and one backward pass."""
    q, k, v, grad_out = problem(tokens)
    busy = os.getloadavg()[0]
    layout = rs.Layout(tokens, world_size=-(-tokens // chunk))
    found: dict[str, Any] = {}

    def forward() -> None:
        found["out"] = rs.attention(
            q, k, v, pattern=longnet(tokens), causal=True, layout=layout, communicator="host"
        )

    def backward() -> None:
        found["grads"] = torch.autograd.grad(found["out"], (q, k, v), grad_out)

    times = seconds(forward, CPU), seconds(backward, CPU)
    run = rs.last_run()
    assert run is not None
    assert run.backward is not None
    return {
        "tokens": tokens,
        "chunk": chunk,
        "shards": layout.world_size,
        "load_average": busy,
        "bytes_of_one_tensor": q.nbytes,
        "forward": _moved(run, times[0]),
        "backward": _moved(run.backward, times[1]),
        "backends": sorted({d.chosen for n, d in run.decisions.items() if n != "communicator"}),
        "results": (found["out"].detach(), *found["grads"]),
    }


def _moved(traffic: Any, took: float) -> dict[str, Any]:
    return {
        "bytes_resident": traffic.bytes_resident,
        "bytes_to_device": traffic.bytes_received,
        "bytes_from_device": traffic.bytes_sent,
        "seconds": took,
    }


def differences(results: tuple[Tensor, ...], tokens: int) -> dict[str, float]:
    """RMS of the difference to the same call without shards, relative to the RMS of that."""
    q, k, v, grad_out = problem(tokens)
    out = rs.attention(q, k, v, pattern=longnet(tokens), causal=True)
    whole = (out.detach(), *torch.autograd.grad(out, (q, k, v), grad_out))
    names = ("out", "grad_query", "grad_key", "grad_value")
    return {
        name: float((a - b).norm() / b.norm())
        for name, a, b in zip(names, results, whole, strict=True)
    }


def figures(lengths: list[int], chunks: list[int]) -> list[dict[str, Any]]:
    """One for each chunk and length, the shortest first."""
    found = []
    for chunk in chunks:
        least: list[int] = []
        for tokens in sorted(lengths):
            figure = measured(tokens, chunk)
            results = figure.pop("results")
            held = [figure[name]["bytes_resident"] for name in ("forward", "backward")]
            if not least:
                least = held
                figure["differences"] = differences(results, tokens)
            growth = max(now / then for now, then in zip(held, least, strict=True))
            figure |= {"growth": growth, "limit": GROWTH, "met": growth <= GROWTH}
            print(json.dumps(figure), flush=True)
            found.append(figure)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, nargs="+", default=[2**18, 2**19, 2**20])
    parser.add_argument("--chunks", type=int, nargs="+", default=[2**15, 2**16])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = figures(options.tokens, options.chunks)
    if options.out:
        report = {
            "environment": environment(CPU),
            "heads": HEADS,
            "head_dim": HEAD_DIM,
            "dtype": "float32",
            "figures": found,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
    return 0 if all(figure["met"] for figure in found) else 1


if __name__ == "__main__":
    sys.exit(main())
