"""Which communicators are compared: those that can serve these ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch.distributed as dist
from ringspan_registry import detect

from ringspan.bench.configuration import NOBODY, LeftOut
from ringspan.catalogue import catalogue
from ringspan.contracts.communicator import Communicator, Link
from ringspan.contracts.errors import InvalidArgument, NoEligibleProvider

if TYPE_CHECKING:
    from ringspan_registry import Decision

    from ringspan.bench.settings import Settings
    from ringspan.bench.world import World

__all__ = ["communicators", "virtual_named"]


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


def virtual_named(name: str) -> Communicator | None:
    """The communicator of that name, if its ranks are virtual: all in this process."""
    if name == NOBODY:
        return None
    found = cast("Communicator", catalogue().provider("communicator", name))
    return found if found.virtual else None


def _reasons(world: World) -> dict[str, str]:
    """What speaks against each communicator; empty where it serves."""
    names = catalogue().names("communicator")
    if world.size == 1:
        return {NOBODY: ""} | {name: _against(name, world) for name in names}
    return {name: _against(name, world) for name in names}


def _against(name: str, world: World) -> str:
    virtual = virtual_named(name) is not None
    if world.size == 1 and not virtual:
        return "one process has nobody to talk to"
    backends = "" if world.group is None else dist.get_backend_config(world.group)
    link = Link(world.device.type, world.size, backends, virtual and world.size == 1)
    try:
        catalogue().select("communicator", link, detect(world.device), requested=name)
    except NoEligibleProvider as refusal:
        decision = cast("Decision", refusal.decision)
        (candidate,) = (each for each in decision.candidates if each.name == name)
        return "; ".join(candidate.reasons)
    return ""
