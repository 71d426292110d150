"""One exchange for each group, device and communicator, with its memory, for all calls."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringspan.contracts.errors import RingError
from ringspan.engine.ring.buffers import Buffers

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

    from ringspan.contracts.communicator import Communicator, Exchange

__all__ = ["Connection", "connect", "connections", "failed"]


@dataclass(slots=True)
class Connection:
    """An open exchange and the memory of its messages."""

    exchange: Exchange
    buffers: Buffers
    calls: int = 0
    """How many forward passes it has carried, the same on every rank."""


_Key = tuple[str, "torch.device"]
_connections: dict[dist.ProcessGroup, dict[_Key, Connection]] = {}
_failures: dict[dist.ProcessGroup, RingError] = {}
# Ranks may be threads of one process. Never held while a communicator opens: that may be a
# collective.
_lock = threading.Lock()


def connect(
    group: dist.ProcessGroup, communicator: Communicator, device: torch.device
) -> Connection:
    """The connection of `group`; the first time a collective.

    Raises:
        RingError: an earlier call of the group failed, so its messages are in no known state.
    """
    failure = _failures.get(group)
    if failure is not None:
        raise RingError(
            "group",
            expected="a process group without failures",
            got=f"one in which an earlier call failed: {failure}",
            remedy="Restart the processes, or make a new group of those that are left",
        ) from failure
    with _lock:
        if group not in _connections:
            _forget_destroyed_groups()
            _connections[group] = {}
        opened = _connections[group]
    key = (communicator.name, device)
    if key not in opened:
        opened[key] = Connection(communicator.open(group, device), Buffers(device))
    return opened[key]


def connections(group: dist.ProcessGroup) -> tuple[Connection, ...]:
    """Every connection of `group` that is open."""
    return tuple(_connections.get(group, {}).values())


def failed(group: dist.ProcessGroup, error: RingError) -> None:
    """Marks a group whose messages are in no known state; their memory stays as it is."""
    _failures[group] = error


def _forget_destroyed_groups() -> None:
    from torch.distributed import distributed_c10d

    known = distributed_c10d._world.pg_map
    for group in [group for group in _connections if group not in known]:
        del _connections[group]
        _failures.pop(group, None)
