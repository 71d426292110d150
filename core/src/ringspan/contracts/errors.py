"""The error tree, as plugins and users import it. Drawn in `ringspan_registry.errors`."""

from ringspan_registry.errors import (
    BrokenContract,
    ConfigurationError,
    DuplicateProvider,
    InvalidArgument,
    NoEligibleProvider,
    NotYetSupported,
    PluginError,
    RanksDisagree,
    RingError,
    RingspanError,
    UnknownProvider,
)

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
