"""How fast attention is beside its bare kernels, and beside what people have today.

    python benchmarks/kernels.py [--device cuda] [--quick] [--out FILE.json]

Pairs measured in turn, and medians; bfloat16, 16 heads of 128 unless a figure says otherwise. Each
figure has its name, the target of a GPU, and a number or `not measured: <reason>`. On a CPU all
sizes are small and nothing is held against a target: such a run tries the benchmark itself.

Needs Ringspan installed; `make gpu` runs the same without.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import kernels_branches
import kernels_dense
import kernels_dilated
import kernels_memory
import torch
from bare import Shape
from dilated import Dilated
from figures import Figure, taken
from gpu_budget import UNLIMITED, Budget

__all__ = ["lines", "measured"]

DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    dense: int
    """Tokens of dense attention."""
    tile: int
    lengths: tuple[int, ...]
    """Tokens of dilated attention."""
    heads: int
    head_dim: int
    forward: tuple[int, int, int]
    """Tokens, heads and head dimension whose forward memory is counted."""
    both: tuple[int, int, int]
    """The same, forward and backward."""
    pairs: int


GPU = Size(2**14, 2048, (2**16, 2**18, 2**20), 16, 128, (2**18, 8, 64), (2**20, 8, 128), 9)
GPU_QUICK = Size(2**14, 2048, (2**16,), 16, 128, (2**18, 8, 64), (2**20, 8, 128), 3)
CPU = Size(256, 32, (512,), 16, 16, (2048, 8, 16), (2048, 8, 16), 2)
SMALL = "small sizes, on a CPU: no figure of a GPU, and held against no target"


def measured(device: torch.device, quick: bool, budget: Budget = UNLIMITED) -> dict[str, Any]:
    """All figures on a device."""
    on_gpu = device.type == "cuda"
    size = CPU if not on_gpu else GPU_QUICK if quick else GPU
    found = [taken(figure, device, budget) for figure in _figures(size, device)]
    return {
        "note": "" if on_gpu else SMALL,
        "exact": not any(figure.get("failed") for figure in found),
        "kernels": found,
        "left_out": budget.left_out,
    }


def _figures(size: Size, device: torch.device) -> Iterator[Figure]:
    """Those that say most come first."""

    def dilated(
        tokens: int, causal: bool, heads: int = size.heads, head_dim: int = size.head_dim
    ) -> Dilated:
        return Dilated(tokens, size.tile, heads, head_dim, DTYPE, device, causal)

    dense = Shape(1, size.dense, size.heads, size.head_dim, DTYPE, device, causal=True)
    yield from kernels_dense.figures(dense, size.pairs, size.tile)
    forward, both = (dilated(n, False, h, d) for n, h, d in (size.forward, size.both))
    yield from kernels_memory.figures(forward, both)
    for tokens in size.lengths:
        # Long calls vary less, and cost more.
        pairs = max(min(3, size.pairs), size.pairs * size.lengths[0] // tokens)
        for causal in (True, False):
            yield from kernels_dilated.figures(dilated(tokens, causal), pairs)
    for causal in (True, False):
        yield from kernels_branches.figures(dilated(size.lengths[0], causal), size.pairs)


def lines(found: dict[str, Any]) -> Iterator[str]:
    """A line for each figure."""
    if found["note"]:
        yield f"  {found['note']}"
    for each in found["kernels"]:
        value = each["measured"]
        unit = "" if each["unit"] == "ratio" else f" {each['unit']}"
        shown = value if isinstance(value, str) else f"{value:.3f}{unit}"
        held = each["target"] and not found["note"]
        target = f" (target {each['target']})" if held else ""
        verdict = {True: " met", False: " NOT MET", None: ""}[each["met"]]
        yield f"  {each['name']}: {shown}{target}{verdict}"


def main() -> int:
    from gpu_machine import describe

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    found = measured(options.device, options.quick)
    for line in lines(found):
        print(line)
    if options.out:
        record = {"machine": describe(options.device), **found}
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if found["exact"] else 1


if __name__ == "__main__":
    sys.exit(main())
