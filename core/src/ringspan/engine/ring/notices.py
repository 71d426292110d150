"""Notices of failure, which ranks leave for each other in their group's store."""

from __future__ import annotations

import json
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from ringspan.contracts.errors import PeerLost, RingError, RingTimeout

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch._C._distributed_c10d import Store

__all__ = ["BLAMING", "Inquiry", "Notice"]

BLAMING = {kind.__name__: kind for kind in (PeerLost, RingTimeout)}
"""The kinds of error whose cause lies with the peer."""
_PATIENCE = 0.75
"""Seconds that a rank looks for the notices of others: all fail at about the same moment."""
_NAP = 0.02


@dataclass(frozen=True, slots=True)
class Notice:
    """What one rank had to say of its failure."""

    rank: int
    kind: str
    peer: int | None
    step: int | None
    direction: str | None
    report: str
    facts: dict[str, str]
    settled: bool = False
    """Whether this rank has looked for its peer's notice already."""

    @classmethod
    def of(cls, error: RingError, rank: int, facts: dict[str, str]) -> Notice:
        """Before anything is known of the others."""
        report = f"{error.argument}: expected {error.expected}, got {error.got}"
        return cls(
            rank,
            type(error).__name__,
            error.peer,
            error.step,
            error.direction,
            report.removeprefix(f"rank {rank}, "),
            facts,
        )

    @property
    def blamed(self) -> int | None:
        """The rank that it lost or waited for in vain; None: the failure is its own."""
        return self.peer if self.kind in BLAMING else None


class Inquiry:
    """Leaves a rank's notice, and follows those of others to where the failure began.

    It asks in a thread, because a store whose host was stopped keeps its clients waiting.
    """

    def __init__(self, group: dist.ProcessGroup, mine: Notice) -> None:
        self._group = group
        self._deadline = time.monotonic() + _PATIENCE
        self.chain = [mine]
        """Each notice is of the rank that the one before blames."""
        self.answered = False
        """Whether the store did, all along."""

    def run(self) -> None:
        """Returns within a second."""
        thread = threading.Thread(target=self._ask, name="ringspan-failure", daemon=True)
        thread.start()
        thread.join(_PATIENCE + 10 * _NAP)

    def _ask(self) -> None:
        try:
            self._follow(_store(self._group))
        except (RuntimeError, OSError):
            # So torch and the system say that the store is gone: nobody is left to be asked.
            return
        self.answered = True

    def _follow(self, store: Store) -> None:
        mine = self.chain[0]
        _leave(store, mine)
        while (blamed := self.chain[-1].blamed) not in {None, *(each.rank for each in self.chain)}:
            found = self._notice(store, _place(blamed), waited_for=self.chain[-1].settled)
            if found is None:
                break
            self.chain.append(found)
        _leave(store, replace(mine, settled=True))

    def _notice(self, store: Store, place: str, *, waited_for: bool) -> Notice | None:
        """What was left there; None where nothing comes, or somebody else has waited in vain."""
        while not store.check([place]):
            if waited_for or time.monotonic() > self._deadline:
                return None
            time.sleep(_NAP)
        return Notice(**json.loads(store.get(place)))


def _place(rank: int | None) -> str:
    return f"ringspan/failure/{rank}"


def _leave(store: Store, notice: Notice) -> None:
    store.set(_place(notice.rank), json.dumps(asdict(notice)))


def _store(group: dist.ProcessGroup) -> Store:
    """A connection of this inquiry's own to the group's store, so that nobody else has to wait."""
    from torch._C._distributed_c10d import TCPStore
    from torch.distributed.distributed_c10d import _get_process_group_store

    store: Any = _get_process_group_store(group)
    server = store
    while hasattr(server, "underlying_store"):
        server = server.underlying_store
    if isinstance(server, TCPStore):
        _knock(server.host, server.port)
    clone: Store = store.clone()
    return clone


def _knock(host: str, port: int) -> None:
    """Raises `OSError` where a store's server is gone, about which torch would write pages.

    A process that is being killed may accept for a moment; then it closes the connection. A
    server that lives waits for its client to speak first.
    """
    with socket.create_connection((host, port), timeout=_PATIENCE) as connection:
        connection.settimeout(10 * _NAP)
        try:
            connection.recv(1)
        except TimeoutError:
            return
    raise ConnectionError(f"{host}:{port} closes its connections")
