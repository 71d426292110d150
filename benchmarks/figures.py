"""Figures: what is measured, what is hoped for, and why where nothing was measured."""

from __future__ import annotations

import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
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
    facts: dict[str, Any] = field(default_factory=dict)


def taken(figure: Figure, device: torch.device, budget: Budget) -> dict[str, Any]:
    """The figure as data: `measured` is a number, or `not measured: <reason>`, never a guess."""
    record = {"name": figure.name, "unit": figure.unit, **figure.facts}
    record["target"] = None if figure.target is None else str(figure.target)
    try:
        if not budget.allows(figure.name):
            raise Unmeasured("the time of this part was over")
        value, facts = figure.measure()
    except Unmeasured as reason:
        return {**record, "measured": f"not measured: {reason}", "met": None}
    except torch.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        return {**record, "measured": f"not measured: out of memory: {reason}", "met": None}
    except NoEligibleProvider as refusal:
        return {**record, "measured": f"not measured: {refusal}", "met": None}
    except Exception:  # noqa: BLE001 - whatever a kernel raises is a finding, and told
        return {
            **record,
            "measured": f"not measured: it failed: {traceback.format_exc()[-2000:]}",
            "met": None,
            "failed": True,
        }
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    judged = figure.target is not None and device.type == "cuda"
    met = figure.target.met(value) if judged and figure.target else None
    return {**record, "measured": value, "met": met, **facts}
