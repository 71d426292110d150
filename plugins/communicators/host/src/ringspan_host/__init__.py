"""The communicator `host`: virtual ranks of one process, whose shards lie in host memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import Communicator, hookimpl

from ringspan_host.communicator import Host
from ringspan_host.settings import HostSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Host", "HostSettings"]


@hookimpl
def ringspan_communicators() -> Sequence[Communicator]:
    """Offers `host`."""
    return [Host()]
