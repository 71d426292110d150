"""Which communicators are compared: those that can serve these ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch

from ringspan.api import explain
from ringspan.bench.configuration import NOBODY, LeftOut
from ringspan.catalogue import catalogue
from ringspan.contracts.communicator import Communicator
from ringspan.contracts.errors import InvalidArgument, NoEligibleProvider
from ringspan.plan.layout import Layout

if TYPE_CHECKING:
    from ringspan.bench.settings import Settings
    from ringspan.bench.world import World

__all__ = ["communicators"]


def communicators(settings: Settings, world: World) -> tuple[tuple[str, ...], tuple[LeftOut, ...]]:
    """The names to compare, and what cannot serve. All ranks do as rank 0 finds.

    Raises:
        NoEligibleProvider: one that was asked for by name cannot serve, with the reasons.
        InvalidArgument: `none` was asked for in a ring.
    """
    against = world.from_first(_reasons(world))
    able = tuple(name for name, reasons in against.items() if not reasons)
    if not settings.communicators:
        left_out = (LeftOut(name, reasons) for name, reasons in against.items() if reasons)
        return able, tuple(left_out)
    for name in settings.communicators:
        if name not in against:
            got = f"{name!r} with {world.size} processes"
            raise InvalidArgument("--communicators", expected="names of communicators", got=got)
        if against[name]:
            expected = f"{name} to serve {world.size} processes"
            raise NoEligibleProvider("--communicators", expected=expected, got=against[name])
    return settings.communicators, ()


def _reasons(world: World) -> dict[str, str]:
    """What speaks against each communicator; empty where it serves."""
    names = catalogue().names("communicator")
    if world.size == 1:
        return {NOBODY: ""} | {name: _against(name, world) for name in names}
    return {name: _against(name, world) for name in names}


def _against(name: str, world: World) -> str:
    provider = cast("Communicator", catalogue().provider("communicator", name))
    if world.size == 1 and not provider.virtual:
        return "one process has nobody to talk to"
    x = torch.zeros(1, 1, 1, 1, device=world.device)
    layout = Layout(world.size, world.size)
    told = explain(x, x, x, layout=layout, group=world.group, communicator=name).decisions
    decision = told.get("communicator")
    if decision is None:
        return "this version runs it on no single process"
    if decision.chosen:
        return ""
    (candidate,) = (each for each in decision.candidates if each.name == name)
    return "; ".join(candidate.reasons) or str(candidate.state)
