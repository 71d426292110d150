"""Where did a failure begin?

A rank that fails leaves the ring, so the next one sees *that* rank fail, and so on around. The
notices that ranks leave lead back to one that left none: there it began. Ranks whose notices
lead to each other waited for one another; if they were in different calls, that is the error.
"""

from __future__ import annotations

from copy import copy
from typing import TYPE_CHECKING

from ringspan.contracts.errors import RanksDisagree, RingError, RingTimeout
from ringspan.engine.ring.notices import BLAMING, Inquiry, Notice

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["witnessed"]


def witnessed(
    group: dist.ProcessGroup, error: RingError, facts: dict[str, str] | None = None
) -> RingError:
    """The error to raise for `error`, after a look at what the other ranks of `group` report.

    Takes less than a second, also where the group's store is gone or does not answer.

    Args:
        group: in no known state from now on.
        error: what this rank's call failed with.
        facts: what this rank was computing, to tell apart ranks that are in different calls.

    Returns:
        A new error about the same message, to be raised from `error`: `PeerLost` or `RingTimeout`
        whose `peer` is the rank where the failure began, with what the ranks between had reported;
        `RanksDisagree` where ranks waited for each other in different calls; otherwise one like
        `error`.

    Example:
        >>> raise witnessed(group, error, {"pattern": "Dense()"}) from error
    """
    inquiry = Inquiry(group, Notice.of(error, group.rank(), facts or {}))
    inquiry.run()
    return _verdict(error, tuple(inquiry.chain), answered=inquiry.answered)


def _verdict(error: RingError, chain: tuple[Notice, ...], *, answered: bool) -> RingError:
    mine, last = chain[0], chain[-1]
    if mine.blamed is None:
        return copy(error)
    if last.blamed is None:
        return _traced(error, type(error), last.rank, chain)
    if last.blamed not in {each.rank for each in chain}:
        silence = f"rank {last.blamed} had reported nothing"
        kind = BLAMING[last.kind]
        return _traced(error, kind, last.blamed, chain, silence if answered else _NO_STORE)
    return _disagreement(error, chain) or _impatience(error, mine.blamed, chain)


_NO_STORE = "the group's store does not answer (plainly launched, it lives in rank 0)"


def _traced(
    error: RingError, kind: type[RingError], root: int, chain: tuple[Notice, ...], *ending: str
) -> RingError:
    got = "; ".join([_told(error, chain), *ending])
    return _about(error, kind, root, got, f"Look for rank {root}'s own error first")


def _impatience(error: RingError, peer: int, chain: tuple[Notice, ...]) -> RingError:
    """Ranks that live blamed each other: one gave up waiting, and the other found it gone."""
    gave_up = any(BLAMING[each.kind] is RingTimeout for each in chain)
    remedy = "Ranks waited for each other: a slow one needs a longer timeout in init_process_group"
    kind = RingTimeout if gave_up else type(error)
    return _about(error, kind, peer, _told(error, chain), remedy)


def _told(error: RingError, chain: tuple[Notice, ...]) -> str:
    """What came instead of the message, and what the other ranks had to say to that."""
    reports = (f"rank {each.rank} had reported: {each.report}" for each in chain[1:])
    return "; ".join([error.got, *reports])


def _about(error: RingError, kind: type[RingError], peer: int, got: str, remedy: str) -> RingError:
    """An error of that kind about the same message, which `peer` is to blame for."""
    found = kind(error.argument, expected=error.expected, got=got, remedy=remedy)
    found.rank, found.peer, found.step, found.direction = (
        error.rank,
        peer,
        error.step,
        error.direction,
    )
    return found


def _disagreement(error: RingError, chain: tuple[Notice, ...]) -> RingError | None:
    """The first field in which a rank that waited too was in another call than this one."""
    mine = chain[0]
    for other in chain[1:]:
        for name, value in mine.facts.items():
            if other.facts and other.facts.get(name) != value:
                found = RanksDisagree(
                    name,
                    expected=f"the same on every rank; rank {mine.rank} has {value}",
                    got=f"{other.facts.get(name)} on rank {other.rank}; "
                    f"they waited for each other in different calls ({error})",
                    remedy="Call attention in the same order and with the same arguments on "
                    "every rank",
                )
                found.rank, found.peer = mine.rank, other.rank
                found.step, found.direction = error.step, error.direction
                return found
    return None
