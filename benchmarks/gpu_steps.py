"""Do the backends live inside real training steps, and what does a call cost its host?

For every usable backend: `torch.compile(fullgraph=True)`; activation checkpointing, on a GPU
captured into a CUDA graph and replayed on other numbers; a warm step under
`torch.cuda.set_sync_debug_mode("error")`; and the time until a call of few tokens returns, its plan
and its decision being cached. Results obey the one rule of accuracy.
"""

from __future__ import annotations

import shutil
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ringspan as rs
import torch
from gpu_budget import UNLIMITED, Budget
from gpu_cases import Case, Tried, tried
from gpu_machine import usable_backends
from ringspan.contracts.errors import NoEligibleProvider
from ringspan.testing import measure
from ringspan.testing.configuration import Configuration
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = ["check"]

NAMES = ("out", "grad_query", "grad_key", "grad_value")
CALLS, SAMPLES = 20, 25
ON_A_GPU = "not run: it is about GPUs"

Numbers = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """One training step of attention: forward and backward."""

    problem: Tried
    backend: str

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Any:
        options = self.problem.options
        out: Any = rs.attention(query, key, value, backend=self.backend, **options)
        return out

    def leaves(self) -> tuple[Tensor, ...]:
        return tuple(x.detach().clone().requires_grad_() for x in self.problem.inputs[:3])

    def numbers(
        self, leaves: tuple[Tensor, ...], attend: Callable[..., Tensor] | None = None
    ) -> Numbers:
        """The output and all gradients, by `attend` in place of its own."""
        out = (attend or self.attend)(*leaves)
        grads = torch.autograd.grad(out, leaves, self.problem.inputs[3])
        return dict(zip(NAMES, (out.detach(), *grads), strict=True))

    def verdict(self, found: Numbers) -> str:
        """`exact`, or what is not."""
        wrong = [str(x) for x in measure(found, self.problem.exact).values() if not x.exact]
        return "; ".join(["not exact", *wrong]) if wrong else "exact"


def check(device: torch.device, quick: bool, budget: Budget = UNLIMITED) -> dict[str, Any]:
    """Every usable backend."""
    problem = tried(_case(device, quick), device)
    records = []
    for backend in usable_backends(device):
        if budget.allows(f"steps of {backend.name}"):
            records.append(_record(Step(problem, backend.name), device))
    good = ("exact", "none", "refused", "not run")
    found = [each[name] for each in records for name in ("compile", "checkpoint", "syncs")]
    return {
        "case": problem.case.as_dict(),
        "exact": all(verdict.startswith(good) for verdict in found),
        "steps": records,
        "left_out": budget.left_out,
    }


def _case(device: torch.device, quick: bool) -> Case:
    configuration = Configuration(
        N=256 if quick else 1024,
        segment_lengths=(64, 256),
        dilation_rates=(1, 4),
        heads=4,
        kv_heads=4,
        head_dim=64,
        value_head_dim=64,
        batch=1,
        causal=True,
        seed=7,
    )
    # The dtypes that most kernels of a type of device take.
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    return Case("dilated", replace(configuration, dtype=dtype))


def _record(step: Step, device: torch.device) -> dict[str, Any]:
    compiler = _compiler(device)
    captured = _captured if device.type == "cuda" else _checkpointed
    return {
        "backend": step.backend,
        "compiler": compiler,
        "compile": _tried(step, lambda: step.verdict(_compiled(step, compiler))),
        "graph": device.type == "cuda",
        "checkpoint": _tried(step, lambda: step.verdict(captured(step))),
        "syncs": _tried(step, lambda: _without_syncs(step, device)),
        **_host_time(step, device),
    }


def _tried(step: Step, work: Callable[[], str]) -> str:
    """What `work` says, or what it raises."""
    try:
        return work()
    except NoEligibleProvider as refusal:
        return f"refused: {refusal}"
    except Exception:  # noqa: BLE001 - whatever a kernel raises is a finding, and told
        return f"failed: {traceback.format_exc()[-2000:]}"


def _compiler(device: torch.device) -> str:
    """Inductor builds its kernels, or their launchers, with the machine's C compiler."""
    there = any(shutil.which(name) for name in ("cc", "gcc", "clang"))
    return "inductor" if device.type == "cuda" and there else "aot_eager"


def _compiled(step: Step, compiler: str) -> Numbers:
    torch.compiler.reset()
    attend = torch.compile(step.attend, fullgraph=True, backend=compiler)
    return step.numbers(step.leaves(), attend)


def _checkpointed(step: Step) -> Numbers:
    return step.numbers(step.leaves(), _recomputed(step))


def _recomputed(step: Step) -> Callable[..., Tensor]:
    """Its attention, computed once more in the backward pass."""

    def attend(*leaves: Tensor) -> Tensor:
        # Torch would read the state of its generator to the host, which a capture forbids.
        out: Tensor = checkpoint(
            step.attend, *leaves, use_reentrant=False, preserve_rng_state=False
        )
        return out

    return attend


def _captured(step: Step) -> Numbers:
    """The same as a CUDA graph: captured with other numbers, then replayed with the step's own."""
    own = [x.clone() for x in step.problem.inputs]
    other = replace(step.problem, inputs=tuple(torch.randn_like(x) for x in own))
    scratch = replace(step, problem=other)
    leaves = scratch.leaves()

    def work() -> Numbers:
        return scratch.numbers(leaves, _recomputed(scratch))

    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = work()
    with torch.no_grad():
        for place, x in zip((*leaves, scratch.problem.inputs[3]), own, strict=True):
            place.copy_(x)
    graph.replay()
    torch.cuda.synchronize()
    return {name: x.clone() for name, x in results.items()}


def _without_syncs(step: Step, device: torch.device) -> str:
    if device.type != "cuda":
        return ON_A_GPU
    leaves = step.leaves()
    for _ in range(2):
        step.numbers(leaves)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step.numbers(leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "none"


def _host_time(step: Step, device: torch.device) -> dict[str, Any]:
    """Microseconds until a call returns, the device's work not waited for."""
    if device.type != "cuda":
        reason = "not measured: on a CPU the host computes"
        return {"host_microseconds": reason, "host_microseconds_with_backward": reason}
    leaves = step.leaves()
    plain = [x.detach() for x in leaves]
    try:
        forward, both = (
            statistics.median(_samples(work))
            for work in (lambda: step.attend(*plain), lambda: step.numbers(leaves))
        )
    except Exception:  # noqa: BLE001 - told here too, as what was left unmeasured
        reason = f"not measured: {traceback.format_exc()[-500:]}"
        return {"host_microseconds": reason, "host_microseconds_with_backward": reason}
    return {"host_microseconds": forward, "host_microseconds_with_backward": both}


def _samples(work: Callable[[], object]) -> Iterator[float]:
    """A few calls at a time, which fit into the device's queue."""
    for sample in range(SAMPLES + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            work()
        took = time.perf_counter() - start
        if sample:
            yield 1e6 * took / CALLS
