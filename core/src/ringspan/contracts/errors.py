"""The error tree, as plugins and users import it. Drawn in `ringspan_registry.errors`."""

from ringspan_registry.errors import (
    BrokenContract,
    CannotMeasure,
    ConfigurationError,
    DuplicateProvider,
    InvalidArgument,
    KernelFault,
    MessageCorrupted,
    NoEligibleProvider,
    NotYetSupported,
    PeerLost,
    PluginError,
    RanksDisagree,
    RingError,
    RingspanError,
    RingTimeout,
    UnknownProvider,
)

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
