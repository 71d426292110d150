"""Times a backend on random tiles in the shape of a problem, for `autotune`."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from ringspan.contracts.backend import Grads
from ringspan.contracts.errors import CannotMeasure
from ringspan.contracts.masks import Mask, MaskCase
from ringspan.engine.capture import capturing
from ringspan.engine.sample import (
    Sample,
    Tensors,
    branch_of,
    device_of,
    dropout_of,
    fitted,
    mask_of,
    tensors_of,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from ringspan.contracts.backend import AttentionBackend, Problem, TileOutput
    from ringspan.contracts.branch import Branch

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

        def run() -> None:
            output = launch.forward()
            if problem.needs_backward:
                launch.backward(*output)

        run()
        return median(_on_cuda(run) if device.type == "cuda" else _on_host(run))


@dataclass(frozen=True, slots=True)
class _Tiles:
    """A launch of tiles; gradients of rows that lie apart are added to whole tensors."""

    backend: AttentionBackend
    tensors: Tensors
    options: dict[str, Any]
    totals: tuple[Tensor, ...]

    def forward(self) -> TileOutput:
        query, key, value, _ = self.tensors
        return self.backend.forward(query, key, value, **self.options)

    def backward(self, out: Tensor, lse: Tensor) -> None:
        query, key, value, grad_out = self.tensors
        grads = self.backend.backward(grad_out, query, key, value, out, _final(lse), **self.options)
        for total, grad in zip(self.totals, grads, strict=False):
            total += grad


@dataclass(frozen=True, slots=True)
class _InPlace:
    """The same rows where they lie, of one tensor."""

    backend: AttentionBackend
    tensors: Tensors
    branch: Branch
    delta: Tensor
    grads: Grads

    def forward(self) -> TileOutput:
        query, key, value, _ = self.tensors
        return self.backend.forward_branch(query, key, value, self.branch)

    def backward(self, out: Tensor, lse: Tensor) -> None:
        query, key, value, grad_out = self.tensors
        self.backend.backward_branch(
            grad_out,
            query,
            key,
            value,
            # Any log-sum-exp takes as long as the right one.
            torch.zeros_like(self.delta),
            self.delta,
            self.branch,
            grads=self.grads,
            first_query=False,
            first_key=False,
        )


def _final(lse: Tensor) -> Tensor:
    return lse.masked_fill(lse == -torch.inf, torch.inf)


def _launch(
    backend: AttentionBackend, problem: Problem, sample: Sample, device: torch.device
) -> _Tiles | _InPlace:
    tensors = tensors_of(sample, problem, device)
    declared = backend.capabilities
    wide = torch.promote_types(tensors.query.dtype, torch.float32)
    whole = not problem.ragged and not problem.blocks
    if declared.branches and whole and problem.mask in declared.masks:
        laid = Tensors(*(_as_one(x, sample.step) for x in tensors))
        grads = Grads(*(torch.zeros_like(x, dtype=wide) for x in laid[:3]))
        batch, rows, heads, _ = laid.query.shape
        delta = laid.query.new_zeros(batch, heads, rows, dtype=wide)
        return _InPlace(backend, laid, branch_of(sample, problem, device), delta, grads)
    bands = MaskCase.BAND in declared.masks
    mask: Mask = mask_of(sample, problem, device, bands=bands)
    options: dict[str, Any] = {"mask": mask, "scale": problem.head_dim**-0.5}
    if problem.dropout:
        options["dropout"] = dropout_of(sample, problem, device)
    apart = problem.needs_backward and sample.step > 1
    totals = tuple(torch.zeros_like(x, dtype=wide) for x in tensors[:3]) if apart else ()
    return _Tiles(backend, tensors, options, totals)


def _as_one(x: Tensor, step: int) -> Tensor:
    """`[1, T * L * step, H, D]`, of which `x` `[T, L, H, D]` is every `step`-th row."""
    tiles, length, heads, width = x.shape
    rows = tiles * length * step
    return x.as_strided((1, rows, heads, width), (0, heads * width, width, 1))


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
