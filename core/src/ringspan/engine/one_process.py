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

__all__ = ["check_one_process", "device_of", "layout_of", "virtual_ranks"]


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


def device_of(virtual: Communicator, *tensors: Tensor) -> torch.device:
    """Where virtual ranks compute: where a tensor of the caller's is, or as they are configured."""
    for x in tensors:
        if x.device.type != "cpu":
            return x.device
    # A tensor's device has a number also where none was configured.
    return torch.empty(0, device=virtual.computes_on()).device


def check_one_process(
    virtual: Communicator | None, layout: Layout, query: Tensor, key: Tensor, *, crossing: bool
) -> None:
    """Refuses what fits neither one shard nor virtual ranks; `crossing`: cross-attention.

    Raises:
        InvalidArgument: a layout of several shards, or keys that lie elsewhere than queries,
            without virtual ranks.
        NotYetSupported: virtual ranks with queries that are not the keys' own tokens.
    """
    if virtual is None:
        _check_one_shard(layout, query, key)
    elif crossing:
        raise NotYetSupported(
            "query_positions",
            expected=f"as many queries as keys, at the same positions, with {virtual.name!r}",
            got=f"{query.shape[1]} queries and {key.shape[1]} keys"
            if query.shape[1] != key.shape[1]
            else "query_positions",
            remedy="Leave communicator out",
        )


def _check_one_shard(layout: Layout, query: Tensor, key: Tensor) -> None:
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
