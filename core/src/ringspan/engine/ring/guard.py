"""What happens to a group when a call fails between its messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ringspan.contracts.errors import RanksDisagree, RingError
from ringspan.engine.ring.exchanges import failed
from ringspan.engine.ring.failure import witnessed

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["guarded"]


@contextmanager
def guarded(group: dist.ProcessGroup, facts: dict[str, str]) -> Iterator[None]:
    """Whatever fails inside ends the group: its messages are in no known state afterwards.

    `facts` say what is being done. Ranks that find together that they disagree have sent nothing
    that is not received, and go on.

    Raises:
        PeerLost, RingTimeout, RanksDisagree: a message failed; as `witnessed` says.
        Exception: this rank's own, of which the others are told.
    """
    try:
        yield
    except RanksDisagree:
        raise
    except RingError as error:
        cause = witnessed(group, error, facts)
        failed(group, cause)
        raise cause from error
    except Exception as error:
        # The other ranks wait for this one's messages: they shall know why none come.
        told = f"{type(error).__name__}: {error}"
        stopped = RingError("group", expected="every rank to finish the call", got=told)
        failed(group, witnessed(group, stopped, facts))
        raise
