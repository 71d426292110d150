"""What went wrong, as far as it can be told."""

from __future__ import annotations

from dataclasses import dataclass

from ringspan.contracts import PeerLost, RingError, RingTimeout

__all__ = ["GONE", "Fault", "fault_of", "silence"]

_REMEDY_OF_LOSS = "Look for that rank's own error first, then restart the processes"
_REMEDY_OF_SILENCE = (
    "Look at what that rank is doing; if it is only slow, give the group a longer timeout"
)
_SIGNS_OF_LOSS = (
    "ncclRemoteError",
    "remote process exited",
    "Connection closed",
    "Connection reset",
    "Broken pipe",
)
_SIGNS_OF_SILENCE = ("timed out", "Timed out", "timeout")


@dataclass(frozen=True, slots=True)
class Fault:
    """The kind of an error, and its words."""

    kind: type[RingError]
    got: str
    remedy: str


GONE = Fault(PeerLost, "no such process any more", _REMEDY_OF_LOSS)


def silence(seconds: float) -> Fault:
    """Nothing happened for so long."""
    return Fault(RingTimeout, f"nothing for {seconds:g} s", _REMEDY_OF_SILENCE)


def fault_of(error: RuntimeError) -> Fault:
    """What an error of torch says.

    Example:
        >>> fault_of(RuntimeError("Connection closed by peer [127.0.0.1]:5")).kind.__name__
        'PeerLost'
    """
    text = str(error)
    got = text.partition("\n")[0]
    if any(sign in text for sign in _SIGNS_OF_LOSS):
        return Fault(PeerLost, got, _REMEDY_OF_LOSS)
    if any(sign in text for sign in _SIGNS_OF_SILENCE):
        return Fault(RingTimeout, got, _REMEDY_OF_SILENCE)
    return Fault(RingError, got, "Restart the processes")
