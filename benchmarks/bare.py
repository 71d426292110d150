"""Kernels called by themselves: no plan, no gathering, no merging."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from figures import Unmeasured
from gpu_machine import usable_backends
from measure import Pairs, interleaved, seconds
from ringspan.contracts import CAUSAL, FULL, AttentionBackend, MaskCase, Problem
from ringspan_registry import detect
from torch import Tensor

__all__ = ["Best", "Shape", "best", "candidates", "flops", "named", "paired"]

SAMPLE_SECONDS = 0.02
"""One sample holds as many calls, one behind the other, as take so long: the host runs ahead."""
MOST_CALLS = 50
LIKELY = 50
"""The priority below which a kernel is no candidate for the fastest: plain products, masks written
out, and what compiles for longer than the whole benchmark should take."""
NOT_SLOWER = 3.0
"""Kernels that take so many times as long as the best on short tiles are not tried on long ones."""


@dataclass(frozen=True)
class Shape:
    """A batch of equal dense problems."""

    batch: int
    length: int
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device
    causal: bool

    def tensors(self) -> list[Tensor]:
        """q, k, v and an upstream gradient."""
        draw = torch.Generator(self.device).manual_seed(0)
        shape = (self.batch, self.length, self.heads, self.head_dim)
        options: dict[str, Any] = {"generator": draw, "device": self.device, "dtype": self.dtype}
        return [torch.randn(shape, **options) for _ in range(4)]

    @property
    def problem(self) -> Problem:
        """As selection would see it."""
        return Problem(
            device=self.device.type,
            dtype=str(self.dtype).removeprefix("torch."),
            mask=MaskCase.CAUSAL if self.causal else MaskCase.FULL,
            head_dim=self.head_dim,
            value_head_dim=self.head_dim,
            device_info=detect(self.device),
        )

    def calls(
        self, backend: AttentionBackend, *, backward: bool, tensors: list[Tensor] | None = None
    ) -> Callable[[], object]:
        """The backend's own functions on these tensors, or on newly drawn ones."""
        q, k, v, grad = self.tensors() if tensors is None else tensors
        options: dict[str, Any] = {
            "mask": CAUSAL if self.causal else FULL,
            "scale": self.head_dim**-0.5,
        }

        def work() -> None:
            out, lse = backend.forward(q, k, v, **options)
            if backward:
                backend.backward(grad, q, k, v, out, lse, **options)

        return work


def flops(shape: Shape, *, backward: bool) -> float:
    """Of both products under the mask, the backward pass counted as 2.5 forward ones."""
    length = shape.length
    area = length * (length + 1) / 2 if shape.causal else length**2
    return (3.5 if backward else 1.0) * 4 * shape.batch * shape.heads * shape.head_dim * area


def named(name: str, shape: Shape) -> AttentionBackend:
    """A usable backend.

    Raises:
        Unmeasured: it is not usable here, or does not take the problem.
    """
    for backend in usable_backends(shape.device):
        if backend.name == name:
            if reasons := list(backend.reasons_against(shape.problem)):
                raise Unmeasured(f"{name} refuses: {'; '.join(reasons)}")
            return backend
    raise Unmeasured(f"{name} is not usable here")


def candidates(shape: Shape) -> list[AttentionBackend]:
    """Every usable backend that takes the problem, the registry's first choice first.

    Raises:
        Unmeasured: there is none.
    """
    usable = usable_backends(shape.device)
    found = [each for each in usable if not list(each.reasons_against(shape.problem))]
    if not found:
        raise Unmeasured(f"no usable backend takes {shape.problem}")
    return found


@dataclass(frozen=True)
class Best:
    """The fastest kernel, and what became of the others."""

    backend: AttentionBackend
    seconds: dict[str, float]
    """Of each that was tried on these tiles; slow ones were on shorter ones alone."""
    broken: dict[str, str]
    """What those raised that could not be timed."""


def best(shape: Shape, *, backward: bool, short: int) -> Best:
    """The fastest of the usable backends, on tiles of `short` tokens first.

    Raises:
        Unmeasured: none could be timed.
    """
    quick = replace(shape, batch=1, length=short)
    broken: dict[str, str] = {}
    likely = _likely(shape)
    timed = _timed(quick, likely, backward, broken)
    limit = NOT_SLOWER * min(timed.values(), default=math.inf)
    tried = [each for each in likely if timed.get(each.name, math.inf) <= limit]
    if quick != shape:
        timed = _timed(shape, tried, backward, broken)
    able = [each for each in tried if each.name in timed]
    if not able:
        raise Unmeasured(f"no kernel could be timed: {broken}")
    return Best(min(able, key=lambda each: timed[each.name]), timed, broken)


def _likely(shape: Shape) -> list[AttentionBackend]:
    """Those worth a try; all, where none is."""
    info, able = detect(shape.device), candidates(shape)
    return [each for each in able if each.priority(info) >= LIKELY] or able


def _timed(
    shape: Shape, backends: list[AttentionBackend], backward: bool, broken: dict[str, str]
) -> dict[str, float]:
    """Seconds by name; what is raised goes into `broken`."""
    timed = {}
    for backend in backends:
        try:
            timed[backend.name] = _seconds(shape, backend, backward)
        except Exception as error:  # noqa: BLE001 - whatever a kernel raises is told
            broken[backend.name] = f"{type(error).__name__}: {error}"[:500]
    return timed


def _seconds(shape: Shape, backend: AttentionBackend, backward: bool) -> float:
    work = shape.calls(backend, backward=backward)
    work()
    return statistics.median(seconds(work, shape.device) for _ in range(5))


def paired(
    first: Callable[[], object], second: Callable[[], object], pairs: int, device: torch.device
) -> Pairs:
    """Seconds of one call of each, measured in turn, A B B A .. ."""
    first(), second()
    shortest = min(seconds(first, device), seconds(second, device))
    calls = min(MOST_CALLS, max(1, math.ceil(SAMPLE_SECONDS / shortest)))
    found = interleaved(_repeated(first, calls), _repeated(second, calls), pairs, device)
    return Pairs(tuple(x / calls for x in found.first), tuple(x / calls for x in found.second))


def _repeated(work: Callable[[], object], calls: int) -> Callable[[], None]:
    def repeated() -> None:
        for _ in range(calls):
            work()

    return repeated
