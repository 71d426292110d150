"""`Dilated` beside dense tiles of its own length, and beside the published steps."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import cache
from typing import Any

from bare import Best, Shape, best, flops, named, paired
from dilated import Dilated, kernel_of_last_run
from figures import Figure, Target, Unmeasured
from measure import peak_bytes
from ringspan.contracts import AttentionBackend
from ringspan.engine import workspace

__all__ = ["figures"]

FLASH_2 = "sdpa-flash"


def figures(problem: Dilated, pairs: int) -> Iterator[Figure]:
    """Rate, speed and memory of a forward and a backward pass."""
    yield Figure(
        f"dilated, {problem}: kept-FLOP rate over the best dense kernel's at {problem.tile} tokens",
        "ratio",
        lambda: _rate(problem, pairs),
        Target(0.90),
    )
    yield Figure(
        f"dilated, {problem}: speed over the published steps on the same kernel",
        "ratio",
        lambda: _speed(problem, pairs, ""),
        Target(1.4),
    )
    yield Figure(
        f"dilated, {problem}: speed over the published steps on {FLASH_2} (FA2)",
        "ratio",
        lambda: _speed(problem, pairs, FLASH_2),
        Target(2.0),
    )
    yield Figure(
        f"dilated, {problem}: peak memory above inputs over that of the published steps",
        "ratio",
        lambda: _memory(problem),
        Target(0.5, at_least=False),
    )


@cache
def _dense(shape: Shape) -> Best:
    return best(shape, backward=True, short=shape.length)


def _rate(problem: Dilated, pairs: int) -> tuple[float, dict[str, Any]]:
    dense = problem.dense
    fastest = _dense(dense)
    work = problem.flops(), flops(dense, backward=True)
    bare = dense.calls(fastest.backend, backward=True)
    found = paired(bare, problem.ours(problem.tensors()), pairs, problem.device)
    return found.ratio * work[0] / work[1], {
        "ran": kernel_of_last_run(),
        "best_dense": fastest.backend.name,
        "broken": fastest.broken,
        "teraflops": work[0] / statistics.median(found.second) / 1e12,
        "dense_teraflops": {name: work[1] / each / 1e12 for name, each in fastest.seconds.items()},
        "seconds": statistics.median(found.second),
        "ratios": [ratio * work[0] / work[1] for ratio in found.ratios],
    }


def _kernel(problem: Dilated, name: str) -> AttentionBackend:
    """The one that is asked for; without a name, the one that the front door chooses."""
    if name and problem.device.type != "cuda":
        raise Unmeasured(f"{name} is a kernel for GPUs")
    return named(name or kernel_of_last_run(), problem.dense)


def _speed(problem: Dilated, pairs: int, name: str) -> tuple[float, dict[str, Any]]:
    tensors = problem.tensors()
    ours = problem.ours(tensors)
    ours()
    chosen, kernel = kernel_of_last_run(), _kernel(problem, name)
    found = paired(problem.theirs(tensors, kernel), ours, pairs, problem.device)
    return found.ratio, {
        "ran": chosen,
        "published_steps_on": kernel.name,
        "seconds": statistics.median(found.second),
        "published_steps_seconds": statistics.median(found.first),
        "ratios": found.ratios,
    }


def _memory(problem: Dilated) -> tuple[float, dict[str, Any]]:
    tensors = problem.tensors()
    ours = problem.ours(tensors)
    ours()
    kernel = _kernel(problem, "")
    # What earlier calls left for this one would otherwise not be counted.
    workspace.release()
    mine = peak_bytes(ours, problem.device)
    other = peak_bytes(problem.theirs(tensors, kernel), problem.device)
    return mine / other, {
        "ran": kernel.name,
        "bytes_above_inputs": mine,
        "published_steps_bytes": other,
        "bytes_of_inputs": sum(x.nbytes for x in tensors),
    }
