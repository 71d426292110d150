"""Calls without a process group: one shard on its device, or virtual ranks where they are named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.contracts.errors import InvalidArgument, NotYetSupported
from ringspan.contracts.tokens import Sequence
from ringspan.engine.choice import named_virtual
from ringspan.plan.layout import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from ringspan.contracts.communicator import Communicator
    from ringspan.engine.call import Call
    from ringspan.plan.queries import QueryPositions

__all__ = ["check_one_shard", "check_queries", "device_of", "layout_of", "virtual_ranks"]


def virtual_ranks(call: Call, world_size: int) -> Communicator | None:
    """The communicator of virtual ranks that serves a call, if one is named.

    `world_size` is that of the call's group. A ring of several ranks is for the communicator
    itself to refuse, with its reasons.

    Raises:
        InvalidArgument: it is named beside a group of this process alone.
    """
    named = named_virtual(call)
    if named is None or call.group is None:
        return named
    if world_size == 1:
        raise InvalidArgument(
            "group",
            expected=f"None beside communicator {named.name!r}, whose ranks are virtual",
            got="a process group of one rank",
            remedy="Leave group out",
        )
    return None


def layout_of(call: Call, N: int, virtual: Communicator | None) -> Layout:
    """The call's own, else one shard, or contiguous shards for virtual ranks."""
    if virtual is None or call.layout is not None:
        return call.layout_for(N)
    return Layout(call.tokens or Sequence(N), virtual.shards(N))


def device_of(virtual: Communicator, *places: torch.device) -> torch.device:
    """Where virtual ranks compute: where a tensor of the caller's is, or as they are configured."""
    for place in places:
        if place.type != "cpu":
            return place
    # A tensor's device has a number also where none was configured.
    configured = virtual.computes_on()
    return torch.empty(0, device=configured).device if configured.type != "cpu" else configured


def check_queries(virtual: Communicator, queries: QueryPositions | None) -> None:
    """Virtual ranks have the keys' own tokens as queries.

    Raises:
        NotYetSupported: there are others.
    """
    if queries is None:
        return
    raise NotYetSupported(
        "query_positions",
        expected=f"as many queries as keys, at the same positions, with {virtual.name!r}",
        got=f"{queries.length} queries"
        + (" of another sequence" if queries.positions is None else " at positions of their own"),
        remedy="Leave communicator out",
    )


def check_one_shard(layout: Layout, query: Tensor, key: Tensor) -> None:
    """One process without virtual ranks holds one shard, on one device.

    Raises:
        InvalidArgument: there are several, or keys lie elsewhere than queries.
    """
    if layout.world_size > 1:
        raise InvalidArgument(
            "group",
            expected=f"a process group of {layout.world_size} ranks, as layout.world_size says",
            got="None, or a group of one",
            remedy="Pass group=, for example torch.distributed.group.WORLD, or for virtual ranks "
            "of this process communicator='host'",
        )
    if key.device != query.device:
        raise InvalidArgument(
            "k.device",
            expected=f"{query.device}, as q",
            got=str(key.device),
            remedy="Move k and v there, or stream them with communicator='host'",
        )
