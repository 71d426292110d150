"""What Triton's interpreter, which runs kernels on the CPU, needs to be told or spared."""

# mypy: disable-error-code="import-untyped"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl

__all__ = ["INTERPRETED", "device", "largest", "smallest", "steps", "total_of"]

INTERPRETED = tl.constexpr(bool(triton.knobs.runtime.interpret))
"""Whether kernels run on the CPU. It computes nothing right in bfloat16."""


def _as_it_is(function: Callable[..., Any]) -> Callable[..., Any]:
    """The interpreter spends milliseconds on each call of a function that it knows."""
    return function


def _counted(first: Any, last: Any) -> range:
    """That of Triton 3.6 cannot count up to a tensor."""
    return range(_number(first), _number(last))


def _number(x: Any) -> int:
    return int(x.handle.data.item()) if isinstance(x, tl.tensor) else int(x)


def _reduced(combine: Any) -> Callable[[Any, int], Any]:
    """What `tl.max` and its like do in the end, and by themselves in milliseconds."""

    def reduced(x: Any, axis: int) -> Any:
        return tl.reduce(x, axis, combine)

    return reduced


device: Callable[..., Any] = triton.jit
"""Marks a function that kernels call."""
steps: Any = tl.range
"""`range`, for bounds that a kernel computes."""
largest: Any = tl.max
smallest: Any = tl.min
total_of: Any = tl.sum

if INTERPRETED.value:
    device, steps = _as_it_is, _counted
    largest = _reduced(tl.standard._elementwise_max)
    smallest = _reduced(tl.standard._elementwise_min)
    total_of = _reduced(tl.standard._sum_combine)
