"""What `Dilated` costs above its bare tile kernels: time (interleaved pairs) and memory.

    python benchmarks/overhead.py [--tokens 16384 65536] [--device cuda] [--out FILE.json]

The bare kernels are called on the same tiles, already cut out and contiguous, forward and
backward, with nothing gathered, merged or summed.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ringspan as rs
import torch
from measure import interleaved, peak_bytes
from ringspan.catalogue import catalogue
from ringspan.contracts import CAUSAL, FULL, AttentionBackend
from ringspan.contracts.selection import key_rows, query_rows
from ringspan.engine import workspace
from ringspan.plan.layout import Layout
from ringspan.plan.schedule import make_plan
from ringspan_registry import detect

HEADS, HEAD_DIM = 8, 64
TIME_LIMIT = 1.10
MEMORY_LIMITS = {"float32": 2.5, "bfloat16": 4.0, "float16": 4.0}
DTYPES = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float16")}
"""What is run on which type of device."""


@dataclass(frozen=True)
class Case:
    """One configuration of the figure."""

    tokens: int
    dtype: str
    causal: bool
    device: torch.device

    @property
    def pattern(self) -> rs.Dilated:
        lengths = tuple(self.tokens // share for share in (8, 4, 2, 1))
        return rs.Dilated(lengths, (1, 2, 4, 8))

    def tensors(self) -> tuple[torch.Tensor, ...]:
        generator = torch.Generator().manual_seed(0)
        shape = (1, self.tokens, HEADS, HEAD_DIM)
        dtype = getattr(torch, self.dtype)
        return tuple(
            torch.randn(shape, generator=generator).to(self.device, dtype) for _ in range(4)
        )


def whole(case: Case, tensors: tuple[torch.Tensor, ...]) -> Any:
    """Forward and backward through the front door."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    out = rs.attention(q, k, v, pattern=case.pattern, causal=case.causal)
    return torch.autograd.grad(out, (q, k, v), tensors[3])


class BareKernels:
    """The same tiles on the same backend, cut out beforehand."""

    def __init__(self, case: Case, tensors: tuple[torch.Tensor, ...]) -> None:
        q, k, v, grad = tensors
        layout = Layout(case.tokens)
        plan = make_plan(case.pattern, causal=case.causal, kv_heads=HEADS, layout=layout, rank=0)
        report = rs.explain(
            *(x.requires_grad_() for x in (q, k, v)), pattern=case.pattern, causal=case.causal
        )
        (decision,) = report.decisions.values()
        self.backend = cast("AttentionBackend", catalogue().provider("backend", decision.chosen))
        self.name = decision.chosen
        self.mask = CAUSAL if case.causal else FULL
        self.tiles = [
            tuple(
                x.detach().contiguous()
                for x in (
                    query_rows(tiles).tile_batch(q),
                    key_rows(tiles).tile_batch(k),
                    key_rows(tiles).tile_batch(v),
                    query_rows(tiles).tile_batch(grad),
                )
            )
            for step in plan.steps
            for tiles in step.tiles
        ]

    def __call__(self) -> None:
        options = {"mask": self.mask, "scale": HEAD_DIM**-0.5}
        for q, k, v, grad in self.tiles:
            out, lse = self.backend.forward(q, k, v, **options)
            self.backend.backward(grad, q, k, v, out, lse, **options)


def measure(case: Case, pairs: int) -> dict[str, Any]:
    """The ratio of time and the memory above inputs of one case."""
    tensors = case.tensors()
    bare = BareKernels(case, tensors)
    times = interleaved(lambda: whole(case, tensors), bare, pairs, case.device)
    # What earlier calls left for this one would otherwise not be counted.
    workspace.release()
    peak = peak_bytes(lambda: whole(case, tensors), case.device)
    ratio, memory = times.ratio, peak / sum(x.numel() * x.element_size() for x in tensors)
    memory_limit = MEMORY_LIMITS[case.dtype]
    return {
        "tokens": case.tokens,
        "dtype": case.dtype,
        "causal": case.causal,
        "backend": bare.name,
        "ratio": ratio,
        "ratios": times.ratios,
        "seconds": statistics.median(times.first),
        "ratio_limit": TIME_LIMIT,
        "memory": memory,
        "memory_limit": memory_limit,
        "met": ratio <= TIME_LIMIT and memory <= memory_limit,
    }


def figure(device: torch.device, tokens: Sequence[int], pairs: int) -> Iterator[dict[str, Any]]:
    """Every case on a device, one after another."""
    for length in tokens:
        for dtype in DTYPES[device.type]:
            for causal in (False, True):
                yield measure(Case(length, dtype, causal, device), pairs)


def line(result: dict[str, Any]) -> str:
    """One result in words."""
    mask = "causal" if result["causal"] else "full"
    return (
        f"{result['tokens']} tokens {result['dtype']:9} {mask:6} {result['backend']}: "
        f"time {result['ratio']:.3f} of the bare kernels (limit {result['ratio_limit']}), "
        f"memory {result['memory']:.2f} of q, k, v and out (limit {result['memory_limit']})"
    )


def environment(device: torch.device) -> dict[str, Any]:
    """Where the figures were measured."""
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": detect(device).name,
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--tokens", type=int, nargs="+", default=[16384])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    for result in figure(options.device, options.tokens, options.pairs):
        results.append(result)
        print(line(result), flush=True)
    if options.out:
        record = {"environment": environment(options.device), "overhead": results}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if all(result["met"] for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
