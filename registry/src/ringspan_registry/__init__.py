"""Which implementation? Discovery, probing, configuration and selection of plugins.

Knows nothing of attention: kinds of hooks, problems and settings are handed in.
"""

from ringspan_registry.config import Configuration, Setting
from ringspan_registry.decision import Candidate, CandidateState, Decision
from ringspan_registry.devices import DeviceInfo, detect, detect_all, recommended_dtype
from ringspan_registry.discovery import PluginRecord, PluginState
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
from ringspan_registry.evaluation import Faulty
from ringspan_registry.provider import API_VERSION, Availability, Provider
from ringspan_registry.registry import Registry

__all__ = [
    "API_VERSION",
    "Availability",
    "BrokenContract",
    "Candidate",
    "CandidateState",
    "CannotMeasure",
    "Configuration",
    "ConfigurationError",
    "Decision",
    "DeviceInfo",
    "DuplicateProvider",
    "Faulty",
    "InvalidArgument",
    "KernelFault",
    "MessageCorrupted",
    "NoEligibleProvider",
    "NotYetSupported",
    "PeerLost",
    "PluginError",
    "PluginRecord",
    "PluginState",
    "Provider",
    "RanksDisagree",
    "Registry",
    "RingError",
    "RingTimeout",
    "RingspanError",
    "Setting",
    "UnknownProvider",
    "detect",
    "detect_all",
    "recommended_dtype",
]
