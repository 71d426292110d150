"""Which way does a device's tensor take through a process group?"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING

import torch.distributed as dist
from ringspan.contracts import InvalidArgument

if TYPE_CHECKING:
    import torch

__all__ = ["Route", "choose", "route_of"]

GROUPED = frozenset({"nccl", "xccl"})
"""Backends that carry device memory, ignore tags, and want all messages of a step in one call."""


class Route(Enum):
    """How messages are handed to torch."""

    DIRECT = auto()
    """Each host tensor on its own, matched by tag."""
    GROUPED = auto()
    """Device tensors in one group call, matched by order."""
    STAGED = auto()
    """Device tensors by way of host memory, each on its own, matched by tag."""


def route_of(group: dist.ProcessGroup, device: torch.device) -> Route:
    """The route of tensors on `device` through `group`, to which this process must belong."""
    if dist.get_rank(group) < 0:
        raise InvalidArgument(
            "group",
            expected="a process group that this process belongs to",
            got=f"a group without global rank {dist.get_rank()}",
        )
    backends = dist.get_backend_config(group)
    route = choose(backends, device.type)
    if route is None:
        raise InvalidArgument(
            "group",
            expected=f"a process group that can carry {device.type} tensors",
            got=f"one with the backends {backends}",
            remedy="Create it with init_process_group('cpu:gloo,cuda:nccl')",
        )
    return route


def choose(backends: str, device_type: str) -> Route | None:
    """The route through a group whose backends are configured as `backends`; None: there is none.

    Args:
        backends: as `torch.distributed.get_backend_config` says: `"cpu:gloo,cuda:nccl"`.
        device_type: as `torch.device.type` says.

    Example:
        >>> choose("cpu:gloo,cuda:gloo", "cuda")
        <Route.STAGED: 3>
    """
    by_device = dict(entry.split(":", 1) for entry in backends.split(",") if ":" in entry)
    if by_device.get(device_type) in GROUPED:
        return Route.GROUPED
    if by_device.get("cpu") is None:
        return None
    return Route.DIRECT if device_type == "cpu" else Route.STAGED
