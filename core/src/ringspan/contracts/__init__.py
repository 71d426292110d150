"""All that an author of a plugin or a pattern imports."""

from ringspan_registry.devices import DeviceInfo
from ringspan_registry.provider import API_VERSION, Availability, Provider

from ringspan.contracts.backend import (
    AttentionBackend,
    Capabilities,
    Grads,
    HeadDims,
    Problem,
    Task,
    TileOutput,
)
from ringspan.contracts.blocks import ActiveBlocks
from ringspan.contracts.branch import Branch, BranchDropout, Piece, Placed
from ringspan.contracts.communicator import Communicator, Exchange, Link, Message, Pending
from ringspan.contracts.documents import Documents
from ringspan.contracts.dropout import Dropout, kept
from ringspan.contracts.errors import (
    BrokenContract,
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
from ringspan.contracts.held import Held
from ringspan.contracts.hookspecs import ENTRY_POINT_GROUP, HOOK_KINDS, hookimpl
from ringspan.contracts.masks import CAUSAL, FULL, Lengths, Mask, MaskCase
from ringspan.contracts.ordering import Ordering, Permutation
from ringspan.contracts.pattern import (
    Blocks,
    Cliques,
    Domain,
    Listed,
    Part,
    Pattern,
    Runs,
    Windows,
)
from ringspan.contracts.tokens import Coordinates, Grid, Sequence, Tokens, axes_of, shard_sizes
from ringspan.contracts.work import Affine, Bitmaps, Indexed, Ragged, Rows, Tiles, Work

__all__ = [
    "API_VERSION",
    "CAUSAL",
    "ENTRY_POINT_GROUP",
    "FULL",
    "HOOK_KINDS",
    "ActiveBlocks",
    "Affine",
    "AttentionBackend",
    "Availability",
    "Bitmaps",
    "Blocks",
    "Branch",
    "BranchDropout",
    "BrokenContract",
    "Capabilities",
    "Cliques",
    "Communicator",
    "ConfigurationError",
    "Coordinates",
    "DeviceInfo",
    "Documents",
    "Domain",
    "Dropout",
    "DuplicateProvider",
    "Exchange",
    "Grads",
    "Grid",
    "HeadDims",
    "Held",
    "Indexed",
    "InvalidArgument",
    "KernelFault",
    "Lengths",
    "Link",
    "Listed",
    "Mask",
    "MaskCase",
    "Message",
    "MessageCorrupted",
    "NoEligibleProvider",
    "NotYetSupported",
    "Ordering",
    "Part",
    "Pattern",
    "PeerLost",
    "Pending",
    "Permutation",
    "Piece",
    "Placed",
    "PluginError",
    "Problem",
    "Provider",
    "Ragged",
    "RanksDisagree",
    "RingError",
    "RingTimeout",
    "RingspanError",
    "Rows",
    "Runs",
    "Sequence",
    "Task",
    "TileOutput",
    "Tiles",
    "Tokens",
    "UnknownProvider",
    "Windows",
    "Work",
    "axes_of",
    "hookimpl",
    "kept",
    "shard_sizes",
]
