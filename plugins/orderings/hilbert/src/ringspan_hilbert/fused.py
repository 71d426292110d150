"""Where keys are computed by kernels. The choice makes a difference in speed alone."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["has_kernels"]


def has_kernels(device: torch.device) -> bool:
    """Whether Triton is there, for a GPU or, in tests, interpreted on a CPU.

    The interpreter is Triton's, and on where the environment sets `TRITON_INTERPRET=1`.
    """
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    wanted = "cpu" if interpreted else "cuda"
    return device.type == wanted and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None
