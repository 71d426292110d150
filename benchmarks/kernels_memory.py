"""What `Dilated` holds on the device at the lengths that people ask about."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ringspan as rs
import torch
from dilated import Dilated, kernel_of_last_run
from figures import Figure, Target
from measure import peak_bytes
from ringspan.engine import workspace

__all__ = ["figures"]

GB = 1e9


def figures(forward: Dilated, both: Dilated) -> Iterator[Figure]:
    """Bytes above the inputs of a forward pass; all bytes of a forward and a backward pass."""
    yield Figure(
        f"dilated, {_size(forward)}, forward: memory above inputs",
        "GB",
        lambda: _forward(forward),
        Target(1.5, at_least=False),
    )
    yield Figure(
        f"dilated, {_size(both)}, forward + backward: peak memory, inputs included",
        "GB",
        lambda: _both(both),
        Target(64.0, at_least=False),
    )


def _size(problem: Dilated) -> str:
    dtype = str(problem.dtype).removeprefix("torch.")
    return f"{problem}, {problem.heads} heads x {problem.head_dim}, {dtype}"


def _forward(problem: Dilated) -> tuple[float, dict[str, Any]]:
    q, k, v, _ = (x.detach() for x in problem.tensors())

    def work() -> torch.Tensor:
        out: torch.Tensor = rs.attention(q, k, v, pattern=problem.pattern, causal=problem.causal)
        return out

    work()
    workspace.release()
    return peak_bytes(work, problem.device) / GB, {"ran": kernel_of_last_run()}


def _both(problem: Dilated) -> tuple[float, dict[str, Any]]:
    tensors = problem.tensors()
    work = problem.ours(tensors)
    work()
    workspace.release()
    above, inputs = peak_bytes(work, problem.device), sum(x.nbytes for x in tensors)
    return (above + inputs) / GB, {"ran": kernel_of_last_run(), "gb_above_inputs": above / GB}
