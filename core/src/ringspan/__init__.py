"""Ringspan: exact long-context attention for PyTorch.

Say *what attends to what*; the kernel, the order of the tokens and the way rows travel between
ranks are plugins, chosen by probing the machine. See `ringspan.attention` for the front door.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ringspan_registry.devices import recommended_dtype

    from ringspan import errors, nn, parallel
    from ringspan.api import Inputs, attention, explain, last_run, use
    from ringspan.contracts.documents import Documents
    from ringspan.contracts.tokens import Coordinates, Grid
    from ringspan.patterns import (
        Along,
        BlockSparse,
        Consecutive,
        Dense,
        Dilated,
        HeadGroups,
        Neighborhood,
    )
    from ringspan.plan.layout import Layout

__version__ = "0.1.0"

_HOMES = {
    "Along": "ringspan.patterns",
    "BlockSparse": "ringspan.patterns",
    "Consecutive": "ringspan.patterns",
    "Coordinates": "ringspan.contracts.tokens",
    "Dense": "ringspan.patterns",
    "Dilated": "ringspan.patterns",
    "Documents": "ringspan.contracts.documents",
    "Grid": "ringspan.contracts.tokens",
    "HeadGroups": "ringspan.patterns",
    "Inputs": "ringspan.api",
    "Layout": "ringspan.plan.layout",
    "Neighborhood": "ringspan.patterns",
    "attention": "ringspan.api",
    "explain": "ringspan.api",
    "last_run": "ringspan.api",
    "recommended_dtype": "ringspan_registry.devices",
    "use": "ringspan.api",
}
_MODULES = ("compat", "decoding", "errors", "nn", "parallel")

__all__ = [
    "Along",
    "BlockSparse",
    "Consecutive",
    "Coordinates",
    "Dense",
    "Dilated",
    "Documents",
    "Grid",
    "HeadGroups",
    "Inputs",
    "Layout",
    "Neighborhood",
    "attention",
    "compat",
    "decoding",
    "errors",
    "explain",
    "last_run",
    "nn",
    "parallel",
    "recommended_dtype",
    "use",
]


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562), so that a plugin importing `ringspan.contracts` does not load the engine.
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
    elif name in _MODULES:
        value = import_module(f"ringspan.{name}")
    else:
        raise AttributeError(f"module 'ringspan' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
