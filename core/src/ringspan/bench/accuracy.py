"""How far a ring's numbers are from those of one process."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ringspan.bench.problem import Operands, Problem

if TYPE_CHECKING:
    from ringspan.bench.configuration import Configuration
    from ringspan.bench.world import World

__all__ = ["Errors", "errors"]

_NAMES = ("out", "grad_query", "grad_key", "grad_value")


@dataclass(frozen=True, slots=True)
class Errors:
    """Largest errors against one process in float64, as parts of the largest element there."""

    tokens: int
    ring: dict[str, float]
    one_process: dict[str, float]
    """Of one process in the ring's dtype: what no ring could avoid."""


def errors(
    problems: Iterable[Problem], full: Operands, world: World
) -> dict[Configuration, Errors]:
    """Runs each problem on the ring and in one process. A collective; rank 0 has the result.

    Args:
        problems: of the operands' length; those of one pattern follow each other.
        full: the operands of all ranks together.
        world: the ranks.
    """
    found = {}
    for _, alike in groupby(problems, lambda problem: problem.options["pattern"]):
        several = list(alike)
        exact = _alone(several[0], full, torch.float64) if world.rank == 0 else {}
        alone = _alone(several[0], full, full.query.dtype) if world.rank == 0 else {}
        for problem in several:
            whole = _gathered(problem, full, world)
            if world.rank == 0:
                found[problem.configuration] = Errors(
                    full.query.shape[1], _compared(whole, exact), _compared(alone, exact)
                )
    return found


def _gathered(problem: Problem, full: Operands, world: World) -> dict[str, Tensor]:
    """The ring's output and gradients, in order of position."""
    given = full.on_each(problem.shard)
    out = problem.forward(given, world.group)
    own = _named(out, problem.backward(given, out))
    return {name: problem.gather(x, world.group) for name, x in own.items()}


def _alone(problem: Problem, full: Operands, dtype: torch.dtype) -> dict[str, Tensor]:
    given = full.on_each(lambda x: x.to(dtype))
    out = problem.alone(given)
    return _named(out, problem.backward(given, out))


def _named(out: Tensor, grads: Iterable[Tensor]) -> dict[str, Tensor]:
    # Collectives of the benchmark, and their comparison, are on the CPU.
    return {name: x.detach().cpu() for name, x in zip(_NAMES, (out, *grads), strict=False)}


def _compared(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> dict[str, float]:
    # Where all of F is zero (one key has no gradient), the error itself is told.
    return {
        name: float((found[name].double() - F).abs().max()) / (float(F.abs().max()) or 1.0)
        for name, F in exact.items()
    }
