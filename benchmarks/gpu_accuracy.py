"""Is every usable backend exact on this device, for every dtype that it takes?"""

from __future__ import annotations

import math
import traceback
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import ringspan as rs
import torch
from gpu_budget import UNLIMITED, Budget
from gpu_cases import Case, Tried, sample, tried
from gpu_machine import usable_backends
from ringspan.contracts.errors import NoEligibleProvider
from ringspan.testing import Measurement, measure
from ringspan.testing.configuration import DTYPES

__all__ = ["NAMES", "Worst", "attend", "check"]

NAMES = ("out", "lse", "grad_query", "grad_key", "grad_value")
AUTO = "auto"


@dataclass
class Worst:
    """The largest ratio of error to limit that was met, tensor by tensor."""

    ratios: dict[str, float] = field(default_factory=lambda: dict.fromkeys(NAMES, 0.0))

    def meet(self, found: Mapping[str, Measurement]) -> None:
        for name, each in found.items():
            ratio = math.inf if math.isnan(each.ratio) else each.ratio
            self.ratios[name] = max(self.ratios[name], ratio)

    @property
    def largest(self) -> float:
        return max(self.ratios.values())


@dataclass
class Tally:
    """What became of the cases of one backend and dtype."""

    computed: int = 0
    worst: Worst = field(default_factory=Worst)
    ran: Counter[str] = field(default_factory=Counter)
    """How often each backend was chosen, for `"auto"` above all."""
    refusals: Counter[str] = field(default_factory=Counter)
    """By reason."""
    inexact: list[dict[str, Any]] = field(default_factory=list)
    """Cases whose numbers break the rule, or that raised."""

    def try_(self, problem: Tried, backend: str) -> None:
        try:
            found = measure(attend(problem, backend=backend), problem.exact)
        except NoEligibleProvider as refusal:
            self.refusals[_reason(refusal, backend)] += 1
            return
        except Exception:  # noqa: BLE001 - whatever a kernel raises is a finding, and told
            self.inexact.append(_finding(problem.case, traceback.format_exc()))
            return
        self.computed += 1
        self.worst.meet(found)
        self.ran.update(_chosen())
        if broken := [str(each) for each in found.values() if not each.exact]:
            self.inexact.append(_finding(problem.case, *broken))

    def as_dict(self) -> dict[str, Any]:
        return {
            "computed": self.computed,
            "ratios": self.worst.ratios,
            "ran": dict(self.ran),
            "refused": self.refusals.total(),
            "refusals": dict(self.refusals),
            "inexact": self.inexact,
        }


def attend(problem: Tried, **options: Any) -> dict[str, torch.Tensor]:
    """Output, lse and gradients through the front door, in this process alone."""
    q, k, v = (x.detach().requires_grad_() for x in problem.inputs[:3])
    out, lse = rs.attention(q, k, v, return_lse=True, **problem.options, **options)
    grads = torch.autograd.grad(out, (q, k, v), problem.inputs[3])
    return dict(zip(NAMES, (out.detach(), lse, *grads), strict=True))


def check(
    device: torch.device, count: int, largest_N: int, budget: Budget = UNLIMITED
) -> dict[str, Any]:
    """Every backend that is usable on `device`, and `auto`, on `count` cases in every dtype."""
    takes = dict(_backends(device))
    tallies = {(name, dtype): Tally() for name, dtypes in takes.items() for dtype in dtypes}
    for number, case in enumerate(sample(count, largest_N)):
        if not budget.allows(f"cases from number {number} of {count} on"):
            break
        for dtype in DTYPES:
            problem = tried(case.of(dtype), device)
            for name in takes:
                if (name, dtype) in tallies:
                    tallies[name, dtype].try_(problem, name)
    records = [
        {"backend": name, "dtype": str(dtype).removeprefix("torch."), **tally.as_dict()}
        for (name, dtype), tally in tallies.items()
    ]
    return {
        "configurations": count,
        "largest_N": largest_N,
        "exact": not any(tally.inexact for tally in tallies.values()),
        "accuracy": records,
        "left_out": budget.left_out,
    }


def _backends(device: torch.device) -> Iterable[tuple[str, list[torch.dtype]]]:
    """Names of usable backends with their dtypes; `auto` takes all."""
    yield AUTO, list(DTYPES)
    for backend in usable_backends(device):
        names = backend.capabilities.dtypes
        yield backend.name, [d for d in DTYPES if str(d).removeprefix("torch.") in names]


def _reason(refusal: NoEligibleProvider, backend: str) -> str:
    decision: Any = refusal.decision
    against = [c for c in decision.candidates if backend in (c.name, AUTO) and c.reasons]
    return " | ".join("; ".join(candidate.reasons) for candidate in against)


def _chosen() -> set[str]:
    run = rs.last_run()
    assert run is not None
    decisions = [each for each in run.decisions.values() if each.kind == "backend"]
    return {decision.chosen for decision in decisions if decision.chosen}


def _finding(case: Case, *what: str) -> dict[str, Any]:
    return {"case": case.as_dict(), "what": list(what)}
