"""What figures were measured on."""

from __future__ import annotations

import torch

__all__ = ["machine"]


def machine() -> str:
    """One line for above the figures."""
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads on a CPU, float32"
