"""Figures: what is measured, what is hoped for, and why where nothing was measured."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from gpu_budget import Budget
from ringspan.contracts.errors import NoEligibleProvider

__all__ = ["Figure", "Target", "Unmeasured", "taken"]


class Unmeasured(Exception):  # noqa: N818 - named for what becomes of the figure
    """Why a figure cannot be measured here."""


@dataclass(frozen=True)
class Target:
    """A bound that a figure of a GPU should keep."""

    bound: float
    at_least: bool = True

    def met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.at_least else '<='} {self.bound:g}"


@dataclass(frozen=True)
class Figure:
    """One number to measure."""

    name: str
    unit: str
    """Of the number; `"ratio"` where it has none."""
    measure: Callable[[], tuple[float, dict[str, Any]]]
    """The number, and facts for whoever reads it. Raises `Unmeasured` where it cannot be had."""
    target: Target | None = None


def taken(figure: Figure, device: torch.device, budget: Budget) -> dict[str, Any]:
    """The figure as data: `measured` is a number, or `not measured: <reason>`, never a guess."""
    target = None if figure.target is None else str(figure.target)
    record = {"name": figure.name, "unit": figure.unit, "target": target, "met": None}
    if budget.allows(figure.name):
        record |= _outcome(figure, device)
    else:
        record["measured"] = "not measured: the time of this part was over"
    # Only here, where no traceback holds tensors any more.
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return record


def _outcome(figure: Figure, device: torch.device) -> dict[str, Any]:
    try:
        value, facts = figure.measure()
    except (Unmeasured, NoEligibleProvider) as reason:
        return {"measured": f"not measured: {reason}"}
    except torch.OutOfMemoryError as error:
        return {"measured": f"not measured: out of memory: {str(error).splitlines()[0]}"}
    except Exception:  # noqa: BLE001 - whatever a kernel raises is a finding, and told
        failure = traceback.format_exc()[-2000:]
        return {"measured": f"not measured: it failed: {failure}", "failed": True}
    judged = figure.target if device.type == "cuda" else None
    met = None if judged is None else judged.met(value)
    return {"measured": value, "met": met, **facts}
