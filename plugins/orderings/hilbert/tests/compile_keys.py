"""Compiles the kernels for a GPU that need not be there; prints their names.

Run as `python compile_keys.py 90`; nothing is launched. Kernels must not be interpreted.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

os.environ.pop("TRITON_INTERPRET", None)

import torch
from ringspan_hilbert.box import Box
from ringspan_hilbert.gilbert import parts
from ringspan_hilbert.kernels import gilbert_keys, interleaved_keys
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

CAPABILITY = int(sys.argv[1])
compiled: list[str] = []


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
        assert made.asm["ptx"]
        compiled.append(kernel.fn.__name__)

    return compile_it


if __name__ == "__main__":
    driver.set_active(Absent())
    JITFunction.__getitem__ = only_compiled
    for sizes in ((1000, 700), (2**31, 5, 2**20)):
        box = Box(tuple(torch.zeros(100, dtype=torch.int32) for _ in sizes), sizes)
        for hilbert in (True, False):
            interleaved_keys(box, 0, hilbert=hilbert)
        gilbert_keys(box, parts(sizes), 0)
    sys.stdout.write(json.dumps(compiled))
