"""Times a backend on random tiles in the shape of a problem, for `autotune`."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from ringspan.contracts.errors import CannotMeasure
from ringspan.contracts.masks import Mask, MaskCase
from ringspan.engine.capture import capturing
from ringspan.engine.sample import (
    Sample,
    Tensors,
    device_of,
    dropout_of,
    fitted,
    mask_of,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ringspan.contracts.backend import AttentionBackend, Problem

__all__ = ["Sample", "seconds"]

_RUNS = 5


def seconds(backend: AttentionBackend, problem: Problem, sample: Sample) -> float:
    """The median of five runs, forward and, where needed, backward, after one that warms up.

    Args:
        backend: one that is eligible for the problem.
        problem: attention; moving rows is not measured.
        sample: the shape of the launch; a smaller one of its kind is run where it would take more
            than a quarter of the free memory.

    Raises:
        CannotMeasure: a CUDA graph is being captured.
        InvalidArgument: the sample is not square where the problem's mask is.
    """
    _refuse_capture()
    device = device_of(problem)
    with ExitStack() as undisturbed:
        for context in _undisturbed(device):
            undisturbed.enter_context(context)
        launch = _launch(backend, problem, fitted(sample, problem, device), device)
        out, lse = launch.forward()
        lse = lse.masked_fill(lse == -torch.inf, torch.inf)

        def run() -> None:
            launch.forward()
            if problem.needs_backward:
                launch.backward(out, lse)

        run()
        return median(_on_cuda(run) if device.type == "cuda" else _on_host(run))


@dataclass(frozen=True, slots=True)
class _Launch:
    backend: AttentionBackend
    tensors: Tensors
    options: dict[str, Any]

    def forward(self) -> tuple[Tensor, Tensor]:
        query, key, value, _ = self.tensors
        return self.backend.forward(query, key, value, **self.options)

    def backward(self, out: Tensor, lse: Tensor) -> None:
        query, key, value, grad_out = self.tensors
        self.backend.backward(grad_out, query, key, value, out, lse, **self.options)


def _launch(
    backend: AttentionBackend, problem: Problem, sample: Sample, device: torch.device
) -> _Launch:
    bands = MaskCase.BAND in backend.capabilities.masks
    mask: Mask = mask_of(sample, problem, device, bands=bands)
    options: dict[str, Any] = {"mask": mask, "scale": problem.head_dim**-0.5}
    if problem.dropout:
        options["dropout"] = dropout_of(sample, problem, device)
    return _Launch(backend, tensors_of(sample, problem, device), options)


def _refuse_capture() -> None:
    if capturing():
        raise CannotMeasure(
            "autotune",
            expected="a first run outside of a CUDA graph",
            got="a capture in progress",
            remedy='Warm up first: run the call once before capturing, or set autotune = "off"',
        )


def _undisturbed(device: torch.device) -> list[AbstractContextManager[Any]]:
    contexts: list[AbstractContextManager[Any]] = [torch.no_grad()]
    if torch.amp.is_autocast_available(device.type):
        contexts.append(torch.autocast(device.type, enabled=False))
    if device.type == "cuda":
        contexts.append(torch.cuda.device(device))
    return contexts


def _on_cuda(run: Callable[[], None]) -> list[float]:
    """By the device's own clock: the host waits once, at the end."""
    event: Any = torch.cuda.Event
    marks = []
    for _ in range(_RUNS):
        begin, end = (event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        marks.append((begin, end))
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) / 1000 for begin, end in marks]


def _on_host(run: Callable[[], None]) -> list[float]:
    times = []
    for _ in range(_RUNS):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return times
