"""What `Dilated` costs above its bare tile kernels: time (interleaved pairs) and memory.

    python benchmarks/overhead.py [--pairs 9] [--tokens 16384] [--device cpu] [--out FILE.json]

The bare kernels are called on the same tiles, already cut out and contiguous, forward and
backward, with nothing gathered, merged or summed.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ringspan as rs
import torch
from measure import interleaved, peak_bytes
from ringspan.catalogue import catalogue
from ringspan.contracts import CAUSAL, FULL
from ringspan.engine.rows import key_rows, query_rows
from ringspan.plan.layout import Layout
from ringspan.plan.schedule import make_plan

HEADS, HEAD_DIM = 8, 64
TIME_LIMIT = 1.10
MEMORY_LIMITS = {"float32": 2.5, "bfloat16": 4.0}


@dataclass(frozen=True)
class Case:
    """One configuration of the figure."""

    tokens: int
    dtype: str
    causal: bool
    device: str

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
        self.backend = catalogue().provider("backend", decision.chosen)
        self.name = decision.chosen
        self.mask = CAUSAL if case.causal else FULL
        self.tiles = [
            tuple(
                x.detach().contiguous()
                for x in (
                    query_rows(tiles, 1).tile_batch(q),
                    key_rows(tiles).tile_batch(k),
                    key_rows(tiles).tile_batch(v),
                    query_rows(tiles, 1).tile_batch(grad),
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
    peak = peak_bytes(lambda: whole(case, tensors), case.device)
    size = sum(x.numel() * x.element_size() for x in tensors)
    return {
        "tokens": case.tokens,
        "dtype": case.dtype,
        "causal": case.causal,
        "backend": bare.name,
        "ratio": times.ratio,
        "ratios": times.ratios,
        "seconds": sorted(times.first)[len(times.first) // 2],
        "ratio_limit": TIME_LIMIT,
        "memory": peak / size,
        "memory_limit": MEMORY_LIMITS[case.dtype],
    }


def environment(device: str) -> dict[str, Any]:
    """Where the figures were measured."""
    cuda = device == "cuda"
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name() if cuda else platform.processor() or "cpu",
        "threads": torch.get_num_threads(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    results = []
    for dtype in ("float32", "bfloat16"):
        for causal in (False, True):
            case = Case(options.tokens, dtype, causal, options.device)
            result = measure(case, options.pairs)
            results.append(result)
            print(
                f"{dtype:9} {'causal' if causal else 'full':6} {result['backend']}: "
                f"time {result['ratio']:.3f} of the bare kernels (limit {TIME_LIMIT}), "
                f"memory {result['memory']:.2f} of q, k, v and out "
                f"(limit {result['memory_limit']})",
                flush=True,
            )
    if options.out:
        record = {"environment": environment(options.device), "overhead": results}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    met = all(r["ratio"] <= r["ratio_limit"] and r["memory"] <= r["memory_limit"] for r in results)
    return 0 if met else 1


if __name__ == "__main__":
    sys.exit(main())
