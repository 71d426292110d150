"""Whether a CUDA graph is being recorded: the host can then wait for nothing."""

from __future__ import annotations

import torch

__all__ = ["capturing"]


def capturing() -> bool:
    """Whether this thread's current CUDA stream records a graph."""
    # Builds without CUDA raise when they are asked for the stream.
    initialized: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return initialized and torch.cuda.is_current_stream_capturing()
