"""Copies of plans for a short stay on a device.

A plan keeps its index tensors on the device for the next call. Where the plans of many ranks take
turns there, each is used through such a copy, whose tensors go when the copy does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from ringspan.contracts.work import Bitmaps, Indexed, Ragged, Work
from ringspan.plan.steps import Parcel, Plan, Step

__all__ = ["parcel_apart", "plan_apart", "step_apart"]

Part = TypeVar("Part")


def plan_apart(plan: Plan) -> Plan:
    """A copy of what belongs to a plan's queries; it shares the steps."""
    return replace(
        plan, query_positions=_apart(plan.query_positions), null_keys=_apart(plan.null_keys)
    )


def step_apart(step: Step) -> Step:
    """A copy of a step and its work."""
    return replace(
        step,
        key_positions=_apart(step.key_positions),
        work=tuple(_work_apart(work) for work in step.work),
    )


def parcel_apart(parcel: Parcel) -> Parcel:
    """A copy of the rows that travel."""
    return Parcel(_apart(parcel.rows), _apart(parcel.heads))


def _work_apart(work: Work) -> Work:
    if isinstance(work, Ragged):
        return replace(work)
    return replace(
        work,
        query=_apart(work.query),
        key=_apart(work.key),
        low=_apart(work.low),
        high=_apart(work.high),
        seen=_apart(work.seen),
    )


def _apart(part: Part) -> Part:
    """The same arrays, without tensors made from them."""
    if isinstance(part, Indexed):
        return Indexed(part.rows)  # type: ignore[return-value]
    if isinstance(part, Bitmaps):
        return Bitmaps(part.table, part.which)  # type: ignore[return-value]
    return part
