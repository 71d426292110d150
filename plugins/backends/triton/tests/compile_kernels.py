"""Compiles the kernels for a GPU that need not be there; prints the shared memory of each.

Run as `python compile_kernels.py 90`; nothing is launched. Kernels must not be interpreted.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import numpy as np
import torch
from ringspan.contracts import Affine, Branch, BranchDropout, Grads, Indexed, MaskCase, TileOutput
from ringspan.contracts.selection import Selection
from ringspan_triton import Triton, tuning
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

CAPABILITY = int(sys.argv[1])
ROWS = 512
compiled: list[tuple[str, int]] = []


class Absent:
    """A GPU of that compute capability, as far as the compiler asks."""

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", CAPABILITY, 32)


def only_compiled(kernel: Any, grid: Any) -> Any:
    def compile_it(*args: Any, **options: Any) -> None:
        made = kernel.run(*args, grid=grid, warmup=True, **options)
        compiled.append((kernel.fn.__name__, made.metadata.shared))

    return compile_it


def compile_branch(dtype: torch.dtype, branch: Branch) -> None:
    query, key = (torch.empty(1, ROWS, heads, 64, dtype=dtype) for heads in (4, 2))
    lse = torch.empty(1, 4, ROWS)
    into = TileOutput(torch.empty_like(query), lse)
    Triton().forward_branch(query, key, key, branch, sink=torch.empty(4, 1), into=into)
    grads = Grads(*(torch.empty(x.shape) for x in (query, key, key)))
    Triton().backward_branch(query, query, key, key, lse, lse, branch, grads=grads,
                             first_query=False, first_key=False)  # fmt: skip


def compile_for_capability() -> None:
    """Views and a triangle on Hopper; lists, intervals, padding and dropout on Ampere."""
    driver.set_active(Absent())
    JITFunction.__getitem__ = only_compiled
    tuning._compute_capability = lambda device: divmod(CAPABILITY, 10)
    rows = Affine(0, ROWS // 2, 1, 1)
    query = Selection(rows, (0, 2), tiles=2, length=200, group=2)
    key = Selection(rows, (0, 1), tiles=2, length=200)
    if CAPABILITY >= 90:
        compile_branch(torch.float16, Branch(query, key, MaskCase.CAUSAL, 0.1))
        return

    listed = Indexed(np.arange(400).reshape(2, 1, 200))
    query, key = (Selection(listed, x.heads, 2, 200, x.group) for x in (query, key))
    position, bound = torch.arange(ROWS), torch.zeros(2, 1, 200, dtype=torch.int64)
    given = {
        "low": bound,
        "high": bound,
        "key_seen": torch.ones(1, ROWS, dtype=torch.bool),
        "dropout": BranchDropout(0.5, 2**40, position, position),
    }
    compile_branch(torch.bfloat16, Branch(query, key, MaskCase.INTERVAL, 0.1, **given))


if __name__ == "__main__":
    compile_for_capability()
    sys.stdout.write(json.dumps(compiled))
