"""Ranks agree before data moves.

When a call's facts are new to a group, each rank publishes them in the group's store and looks
for its peers' before the first transfer. Known facts cost nothing: no collective, no store access.
Without this, ranks that disagree on sizes abort or hang inside the transport.

Facts are published under their digest, so ranks meet again after a refusal that only some of them
saw; what a peer published last tells one that waits that the peer went elsewhere.
"""

from __future__ import annotations

import hashlib
import json
import time
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ringspan.contracts.errors import RanksDisagree, RingError, RingTimeout

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist

__all__ = ["agree"]

Facts = dict[str, str]
_LONGEST_NAP = 0.05
_NOTICE = 1.0
"""Seconds that a rank which met a disagreement waits for the other ranks' part in it."""


def agree(group: dist.ProcessGroup, facts: Facts, device: torch.device) -> int:
    """Returns once every rank of `group` has come with equal `facts`.

    `device` is the tensors', for whose transport the group's timeout holds.

    Returns:
        A number below 2**20 that stands for the facts, the same on every rank. As part of the
        messages' tags it keeps ranks that enter different known calls from taking each other's
        messages.

    Raises:
        RanksDisagree: naming the ranks and the first field that differs.
        RingTimeout: naming the rank that did not come within the group's timeout.
        RingError: the group's store does not answer.
    """
    agreed = _groups.setdefault(group, _Agreed())
    digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    if digest not in agreed.known:
        from torch.distributed import DistError

        try:
            _Round(group, facts, digest, agreed, _patience(group, device)).meet()
        except DistError as error:
            raise RingError(
                f"group of rank {group.rank()}",
                expected="an answer from the group's store",
                got=str(error).partition("\n")[0],
                remedy="The process that hosts it is gone: rank 0, plainly launched",
            ) from error
        agreed.known.add(digest)
    return int(digest[:5], 16)


@dataclass
class _Agreed:
    """What one group has agreed on so far."""

    known: set[str] = field(default_factory=set)
    published: int = 0
    """How often this rank has published facts."""
    seen: dict[int, int] = field(default_factory=dict)
    """Per peer, the number of its publication that this rank last took notice of."""


_groups: weakref.WeakKeyDictionary[dist.ProcessGroup, _Agreed] = weakref.WeakKeyDictionary()


class _Round:
    """One meeting of all ranks over new facts."""

    def __init__(
        self,
        group: dist.ProcessGroup,
        facts: Facts,
        digest: str,
        agreed: _Agreed,
        patience: float,
    ) -> None:
        from torch.distributed.distributed_c10d import _get_process_group_store

        self._store = _get_process_group_store(group)
        self._rank, self._world_size = group.rank(), group.size()
        self._facts, self._digest, self._agreed = facts, digest, agreed
        self._deadline = time.monotonic() + patience

    def meet(self) -> None:
        """Publishes the facts and waits for every peer's."""
        self._agreed.published += 1
        number = self._agreed.published
        self._store.set(self._place(self._rank), str(number))
        self._store.set(self._latest(self._rank), json.dumps([number, self._facts]))
        peers = [peer for peer in range(self._world_size) if peer != self._rank]
        for position, peer in enumerate(peers):
            try:
                self._wait_for(peer)
            except (RanksDisagree, RingTimeout):
                # A later call with these facts must not take this rank for having come, nor what
                # the others publish in this round for their next.
                self._store.delete_key(self._place(self._rank))
                self._take_notice_of(peers[position + 1 :])
                raise

    def _place(self, rank: int) -> str:
        return f"ringspan/agreement/{self._digest}/{rank}"

    def _latest(self, rank: int) -> str:
        return f"ringspan/latest/{rank}"

    def _wait_for(self, peer: int) -> None:
        nap = 0.001
        while not self._came(peer):
            if time.monotonic() > self._deadline:
                raise self._silent(peer)
            time.sleep(nap)
            nap = min(2 * nap, _LONGEST_NAP)

    def _silent(self, peer: int) -> RingTimeout:
        error = RingTimeout(
            "group",
            expected=f"rank {peer} to make the same call as rank {self._rank}",
            got=f"nothing from rank {peer} within the group's timeout",
            remedy="Make the same call on every rank of the group, with the same arguments",
        )
        # Before the first step: nothing has been sent yet.
        error.rank, error.peer, error.step, error.direction = self._rank, peer, 0, "receive"
        return error

    def _take_notice_of(self, peers: list[int]) -> None:
        """Marks what the peers publish in this round as seen, waiting a moment for each."""
        end = time.monotonic() + _NOTICE
        for peer in peers:
            while not self._published(peer) and time.monotonic() < end:
                time.sleep(_LONGEST_NAP / 10)

    def _published(self, peer: int) -> bool:
        if not self._store.check([self._latest(peer)]):
            return False
        number, _ = json.loads(self._store.get(self._latest(peer)))
        fresh: bool = number > self._agreed.seen.get(peer, 0)
        self._agreed.seen[peer] = max(number, self._agreed.seen.get(peer, 0))
        return fresh

    def _came(self, peer: int) -> bool:
        """Whether the peer published these facts; other new facts of its are a disagreement."""
        if self._store.check([self._place(peer)]):
            self._agreed.seen[peer] = int(self._store.get(self._place(peer)))
            return True
        if not self._store.check([self._latest(peer)]):
            return False
        number, facts = json.loads(self._store.get(self._latest(peer)))
        if number <= self._agreed.seen.get(peer, 0):
            return False
        self._agreed.seen[peer] = number
        self._compare(peer, facts)
        return True

    def _compare(self, peer: int, theirs: Facts) -> None:
        # A rank at another stage of a call, or in another kind of one, has other facts beside.
        shared = sorted(self._facts.items(), key=lambda fact: fact[0] not in theirs)
        for name, value in shared:
            if theirs.get(name) != value:
                raise RanksDisagree(
                    name,
                    expected=f"the same on every rank; rank {self._rank} has {value}",
                    got=f"{theirs.get(name)} on rank {peer}",
                    remedy="Make the same call on every rank, with the same arguments",
                )


def _patience(group: dist.ProcessGroup, device: torch.device) -> float:
    """The group's own timeout in seconds."""
    options = group._get_backend(device).options
    return float(options._timeout.total_seconds())
