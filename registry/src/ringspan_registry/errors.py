"""One tree of errors for Ringspan and its plugins.

    RingspanError                     everything Ringspan raises on purpose
    ├── InvalidArgument (ValueError)  an argument has the wrong type, shape, dtype, device or value
    │   ├── NotYetSupported           a correct argument that this version refuses by name
    │   └── CannotMeasure             times cannot be measured at this moment
    ├── ConfigurationError            a file, variable or context setting is malformed or unknown
    ├── PluginError                   something is wrong with an installed plugin
    │   ├── UnknownProvider           no plugin offers that name
    │   ├── DuplicateProvider         two distributions offer the same name
    │   └── BrokenContract            a provider returned what its contract forbids
    ├── NoEligibleProvider            no provider can serve; `.decision` has every reason
    ├── KernelFault                   a kernel failed, or answered with NaN, at work
    └── RingError                     ranks cannot work together
        ├── RanksDisagree             ranks called with different problems
        ├── PeerLost                  another rank's process is gone
        ├── RingTimeout               another rank is silent
        └── MessageCorrupted          a message did not arrive as it was sent

Every message says four things in the same order: the argument (or setting), what was
expected, what came, and the remedy.
"""

# ruff: noqa: N818 - named for what went wrong, as the tree reads

from __future__ import annotations

from typing import Literal, Self

__all__ = [
    "BrokenContract",
    "CannotMeasure",
    "ConfigurationError",
    "DuplicateProvider",
    "InvalidArgument",
    "KernelFault",
    "MessageCorrupted",
    "NoEligibleProvider",
    "NotYetSupported",
    "PeerLost",
    "PluginError",
    "RanksDisagree",
    "RingError",
    "RingTimeout",
    "RingspanError",
    "UnknownProvider",
]


class RingspanError(Exception):
    """Base of every error raised on purpose.

    Args:
        argument: name of the argument or setting at fault.
        expected: what would have been accepted.
        got: what came.
        remedy: what to do about it; omitted where `expected` already says it.
    """

    def __init__(self, argument: str, *, expected: str, got: str, remedy: str = "") -> None:
        self.argument = argument
        self.expected = expected
        self.got = got
        self.remedy = remedy
        super().__init__(argument, expected, got, remedy)

    def __str__(self) -> str:
        text = f"{self.argument}: expected {self.expected}, got {self.got}"
        if not self.remedy:
            return text
        return f"{text}\n{self.remedy}" if "\n" in text else f"{text}. {self.remedy}"

    def __reduce__(self) -> tuple[object, ...]:
        parts = (type(self), self.argument, self.expected, self.got, self.remedy)
        return (_rebuild, parts, self.__dict__)


def _rebuild(
    kind: type[RingspanError], argument: str, expected: str, got: str, remedy: str
) -> RingspanError:
    return kind(argument, expected=expected, got=got, remedy=remedy)


class InvalidArgument(RingspanError, ValueError):
    """An argument has the wrong type, shape, dtype, device or value."""


class NotYetSupported(InvalidArgument):
    """A well-formed argument that this version refuses by name."""


class CannotMeasure(InvalidArgument):
    """Times cannot be measured at this moment; no provider is at fault."""


class ConfigurationError(RingspanError):
    """A configuration file, environment variable or context setting is malformed or unknown."""


class PluginError(RingspanError):
    """Something is wrong with an installed plugin."""


class UnknownProvider(PluginError):
    """No installed plugin offers a provider of that name."""


class DuplicateProvider(PluginError):
    """Two distributions offer a provider of the same name."""


class BrokenContract(PluginError):
    """A provider returned something that its contract forbids."""


class NoEligibleProvider(RingspanError):
    """No provider can serve the problem. `decision` holds every candidate's reasons."""

    decision: object = None


class KernelFault(RingspanError):
    """A kernel failed at work: it raised, or answered with NaN.

    `backend` is its name, and `reason` what it did, as in `"forward raised RuntimeError: ..."`.
    """

    backend: str = ""
    reason: str = ""

    @classmethod
    def of(cls, backend: str, reason: str, *, problem: str, version: str = "") -> Self:
        """The fault of one launch.

        Example:
            >>> fault = KernelFault.of("flash2", "forward raised OSError: gone", problem="a tile")
            >>> print(fault.backend, "|", fault.reason)
            flash2 | forward raised OSError: gone
        """
        known = f" ({version})" if version else ""
        error = cls(
            f"backend {backend!r}{known}",
            expected=f"a result for {problem}",
            got=f"a fault: {reason}",
            remedy='Name another backend; with on_fault = "next" and several names, or "auto", '
            "the next one goes on",
        )
        error.backend, error.reason = backend, reason
        return error


class RingError(RingspanError):
    """Ranks cannot work together.

    What is known of the message at fault stands in `rank` (who says so), `peer` (whom it is
    about), `step` of the ring and `direction` (`"send"` or `"receive"`); ranks are the group's.
    """

    rank: int | None = None
    peer: int | None = None
    step: int | None = None
    direction: str | None = None

    @classmethod
    def between(
        cls,
        rank: int,
        peer: int,
        *,
        step: int,
        direction: Literal["send", "receive"],
        got: str,
        remedy: str = "",
    ) -> Self:
        """The error of one message of `rank`.

        Example:
            >>> print(PeerLost.between(0, 2, step=1, direction="send", got="a closed connection"))
            rank 0, step 1: expected to send to rank 2, got a closed connection
        """
        preposition = "to" if direction == "send" else "from"
        error = cls(
            f"rank {rank}, step {step}",
            expected=f"to {direction} {preposition} rank {peer}",
            got=got,
            remedy=remedy,
        )
        error.rank, error.peer, error.step, error.direction = rank, peer, step, direction
        return error


class RanksDisagree(RingError):
    """Ranks entered the same call with different problems."""


class PeerLost(RingError):
    """Another rank's process is gone: its connection closed."""


class RingTimeout(RingError):
    """Another rank is silent: it did not answer within the group's timeout."""


class MessageCorrupted(RingError):
    """A message did not arrive as it was sent, as its checksum says (`debug = true`)."""
