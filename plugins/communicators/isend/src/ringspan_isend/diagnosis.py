"""What does an error of torch say of the peer: gone, silent, or something else?

torch raises plain `RuntimeError`s, so their texts are all there is to go by.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from ringspan.contracts import PeerLost, RingError, RingTimeout

__all__ = ["Diagnosis", "diagnose"]

GONE = re.compile(
    "connection closed|connection reset|connection refused|broken pipe|socket .*closed"
    "|remote process exit",
    re.IGNORECASE,
)
SILENT = re.compile("timed out|timeout", re.IGNORECASE)
CLOSED_HERE = re.compile("application timeout caused pair closure", re.IGNORECASE)
"""gloo ends all connections of a group at its first timeout, and says so of every later message."""

LOOK_THERE = "Look for that rank's own error first"


class Diagnosis(NamedTuple):
    """What became of a message."""

    kind: type[RingError]
    got: str
    remedy: str = LOOK_THERE


def diagnose(error: RuntimeError) -> Diagnosis:
    """The kind of error and its words, from what torch says.

    Example:
        >>> diagnose(RuntimeError("[pair.cc:553] Connection closed by peer [::1]:7")).kind.__name__
        'PeerLost'
    """
    text = str(error)
    if CLOSED_HERE.search(text):
        return Diagnosis(RingTimeout, "connections that a timeout of this rank had closed")
    if GONE.search(text):
        return Diagnosis(PeerLost, "a closed connection")
    if SILENT.search(text):
        return Diagnosis(
            RingTimeout,
            "nothing within the group's timeout",
            f"{LOOK_THERE}; a slow rank needs a longer timeout in init_process_group",
        )
    return Diagnosis(RingError, text.partition("\n")[0])
