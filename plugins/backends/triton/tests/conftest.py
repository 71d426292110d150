"""Without a GPU, Triton's kernels run interpreted; Triton reads this when it is imported."""

from __future__ import annotations

import os
from dataclasses import replace

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

    from triton.runtime.interpreter import interpreter_builder

    # Whether each sum of integers overflows is a third of the time, and is found in vain.
    interpreter_builder.options = replace(interpreter_builder.options, sanitize_overflow=False)
