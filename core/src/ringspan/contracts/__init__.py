"""All that an author of a plugin or a pattern imports."""

from ringspan_registry.devices import DeviceInfo
from ringspan_registry.provider import API_VERSION, Availability, Provider

from ringspan.contracts.backend import (
    AttentionBackend,
    Capabilities,
    Grads,
    HeadDims,
    Problem,
    TileOutput,
)
from ringspan.contracts.communicator import Communicator, Exchange, Message, Pending
from ringspan.contracts.errors import (
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
from ringspan.contracts.hookspecs import ENTRY_POINT_GROUP, HOOK_KINDS, hookimpl
from ringspan.contracts.masks import CAUSAL, FULL, Mask, MaskCase
from ringspan.contracts.ordering import Ordering, Permutation
from ringspan.contracts.tokens import Coordinates, Grid, Sequence, Tokens, shard_sizes

__all__ = [
    "API_VERSION",
    "CAUSAL",
    "ENTRY_POINT_GROUP",
    "FULL",
    "HOOK_KINDS",
    "AttentionBackend",
    "Availability",
    "BrokenContract",
    "Capabilities",
    "Communicator",
    "ConfigurationError",
    "Coordinates",
    "DeviceInfo",
    "DuplicateProvider",
    "Exchange",
    "Grads",
    "Grid",
    "HeadDims",
    "InvalidArgument",
    "Mask",
    "MaskCase",
    "Message",
    "NoEligibleProvider",
    "NotYetSupported",
    "Ordering",
    "Pending",
    "Permutation",
    "PluginError",
    "Problem",
    "Provider",
    "RanksDisagree",
    "RingError",
    "RingspanError",
    "Sequence",
    "TileOutput",
    "Tokens",
    "UnknownProvider",
    "hookimpl",
    "shard_sizes",
]
