"""What a group's calls have sent and received so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ringspan.engine.ring.exchanges import connections
from ringspan.parallel.checks import ranks_of

__all__ = ["Traffic", "traffic"]


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of this rank, counted by the communicators."""

    bytes_sent: int
    bytes_received: int

    def __sub__(self, earlier: Traffic) -> Traffic:
        """What came since."""
        return Traffic(
            self.bytes_sent - earlier.bytes_sent, self.bytes_received - earlier.bytes_received
        )


def traffic(group: Any = None) -> Traffic:
    """What attention of `group` has sent and received on this rank, forward and backward.

    It only grows; what one step moved is the difference of two readings. `shard`, `gather` and
    `token_mean` are torch's collectives and are not counted. Nothing travels for this.

    Args:
        group: a ProcessGroup or one-dimensional DeviceMesh; None: the default group, or without
            torch.distributed, this process alone, which sends nothing.

    Example:
        >>> import ringspan as rs
        >>> before = rs.parallel.traffic()
        >>> rs.parallel.traffic() - before
        Traffic(bytes_sent=0, bytes_received=0)
    """
    process = ranks_of(group)
    exchanges = [] if process is None else [each.exchange for each in connections(process)]
    return Traffic(
        sum(exchange.bytes_sent for exchange in exchanges),
        sum(exchange.bytes_received for exchange in exchanges),
    )
