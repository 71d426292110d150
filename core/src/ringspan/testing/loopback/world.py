"""The default process group of torch.distributed, for each thread another.

torch keeps its groups in one object per process. While a loopback is at work, that object answers
each rank's thread with the thread's own default group, and names of groups are looked up per
thread, so that ranks can have the same names for different objects, as processes do. Every other
thread finds what it always found, except groups by name.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch._C import _distributed_c10d as c10d_in_cpp
from torch.distributed import distributed_c10d

if TYPE_CHECKING:
    import torch.distributed as dist

    from ringspan.testing.loopback.wires import Wires

__all__ = ["leave", "seat", "sit_down", "worlds_per_thread"]


class _Seats(threading.local):
    """What a thread has of its own, if it is a rank's."""

    wires: Wires | None = None
    default_pg: dist.ProcessGroup | None = None
    group_count = 0

    def __init__(self) -> None:
        self.pg_names: dict[dist.ProcessGroup, str] = {}
        self.tags_to_pg: dict[str, list[dist.ProcessGroup]] = {}


_seats = _Seats()
_OWN = ("default_pg", "group_count", "pg_names", "tags_to_pg")
"""What of torch's world differs between ranks that name and number their groups alike."""


class _Worlds:
    """Stands in for torch's world. Tables that are keyed by group hold all threads' groups."""

    def __init__(self, process: Any) -> None:
        object.__setattr__(self, "_process", process)

    def __getattr__(self, name: str) -> Any:
        own = name in _OWN and _seats.wires is not None
        return getattr(_seats if own else self._process, name)

    def __setattr__(self, name: str, value: Any) -> None:
        own = name in _OWN and _seats.wires is not None
        setattr(_seats if own else self._process, name, value)


_lock = threading.Lock()
_users = 0


@contextmanager
def worlds_per_thread() -> Iterator[None]:
    """Gives each rank's thread a world of its own, until the last of its users is done."""
    global _users
    with _lock:
        _users += 1
        if _users == 1:
            distributed_c10d._world = _Worlds(distributed_c10d._world)  # type: ignore[assignment]
            c10d_in_cpp._set_thread_isolation_mode(True)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                c10d_in_cpp._set_thread_isolation_mode(False)  # type: ignore[attr-defined]
                distributed_c10d._world = distributed_c10d._world._process  # type: ignore[attr-defined]


def sit_down(wires: Wires) -> None:
    """Makes the calling thread a rank with no groups yet; a thread is one only once."""
    _seats.wires = wires


def seat() -> Wires | None:
    """The wires of the calling thread, if it is a rank of a loopback."""
    return _seats.wires


def leave() -> None:
    """Destroys the groups that the calling thread made, and no other thread's."""
    world: Any = distributed_c10d._world
    # Destroying the default group would destroy all groups of the process.
    groups, world.default_pg = list(world.pg_names), None
    for group in groups:
        distributed_c10d.destroy_process_group(group)
    _seats.wires = None
