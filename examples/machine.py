"""What figures were measured on."""

from __future__ import annotations

import os

import torch

__all__ = ["machine"]


def machine() -> str:
    """One line for above the figures."""
    threads, cores = torch.get_num_threads(), os.cpu_count()
    return f"torch {torch.__version__} on a CPU, {threads} of {cores} cores, float32"
