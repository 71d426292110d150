"""Ranks agree before data moves.

When a call's facts are new to a group, each rank publishes them in the group's store and
compares its peers' before the first transfer. Known facts cost nothing: no collective, no
store access. Without this, ranks that disagree on sizes abort or hang inside the transport.
"""

from __future__ import annotations

import json
import weakref
from typing import TYPE_CHECKING

from ringspan.contracts.errors import RanksDisagree

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["agree"]

Facts = dict[str, str]


class _Agreed:
    """What one group has agreed on so far; the count numbers the rounds in the store."""

    def __init__(self) -> None:
        self.known: set[tuple[tuple[str, str], ...]] = set()
        self.rounds = 0


_groups: weakref.WeakKeyDictionary[dist.ProcessGroup, _Agreed] = weakref.WeakKeyDictionary()


def agree(group: dist.ProcessGroup, facts: Facts) -> None:
    """Returns once every rank of `group` has come with equal `facts`.

    Raises:
        RanksDisagree: naming the ranks and the first field that differs, or the rank that did
            not come within the group's timeout.
    """
    agreed = _groups.setdefault(group, _Agreed())
    key = tuple(sorted(facts.items()))
    if key in agreed.known:
        return
    # Counted before the comparison: after a refusal a retry must not read this round's facts.
    agreed.rounds += 1
    _compare(group, facts, agreed.rounds)
    agreed.known.add(key)


def _compare(group: dist.ProcessGroup, facts: Facts, number: int) -> None:
    from torch.distributed.distributed_c10d import _get_process_group_store

    store = _get_process_group_store(group)
    rank, world_size = group.rank(), group.size()
    store.set(_place(number, rank), json.dumps(facts))
    for peer in range(world_size):
        if peer == rank:
            continue
        try:
            theirs = json.loads(store.get(_place(number, peer)))
        except RuntimeError as cause:
            raise RanksDisagree(
                "group",
                expected=f"rank {peer} to enter the same attention call as rank {rank}",
                got=f"nothing from rank {peer}: {cause}",
                remedy="Call attention on every rank of the group, with the same arguments",
            ) from cause
        _check(rank, facts, peer, theirs)


def _place(number: int, rank: int) -> str:
    return f"ringspan/agreement/{number}/{rank}"


def _check(rank: int, mine: Facts, peer: int, theirs: Facts) -> None:
    for field, value in mine.items():
        if theirs.get(field) != value:
            raise RanksDisagree(
                field,
                expected=f"the same on every rank; rank {rank} has {value}",
                got=f"{theirs.get(field)} on rank {peer}",
                remedy="Call attention with the same arguments on every rank",
            )
