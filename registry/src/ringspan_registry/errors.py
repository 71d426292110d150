"""One tree of errors for Ringspan and its plugins.

    RingspanError                     everything Ringspan raises on purpose
    ├── InvalidArgument (ValueError)  an argument has the wrong type, shape, dtype, device or value
    │   └── NotYetSupported           a correct argument that this version refuses by name
    ├── ConfigurationError            a file, variable or context setting is malformed or unknown
    ├── PluginError                   something is wrong with an installed plugin
    │   ├── UnknownProvider           no plugin offers that name
    │   ├── DuplicateProvider         two distributions offer the same name
    │   └── BrokenContract            a provider returned what its contract forbids
    ├── NoEligibleProvider            no provider can serve; `.decision` has every reason
    └── RingError                     ranks cannot work together
        └── RanksDisagree             ranks called with different problems

Every message says four things in the same order: the argument (or setting), what was
expected, what came, and the remedy.
"""

# ruff: noqa: N818 - named for what went wrong, as the tree reads

from __future__ import annotations

__all__ = [
    "BrokenContract",
    "ConfigurationError",
    "DuplicateProvider",
    "InvalidArgument",
    "NoEligibleProvider",
    "NotYetSupported",
    "PluginError",
    "RanksDisagree",
    "RingError",
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


class RingError(RingspanError):
    """Ranks cannot work together."""


class RanksDisagree(RingError):
    """Ranks entered the same call with different problems."""
