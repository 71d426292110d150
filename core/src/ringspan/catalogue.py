"""Which plugins and settings this process has."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringspan_registry import Configuration, Registry

__all__ = ["catalogue", "configuration"]


@lru_cache(maxsize=1)
def configuration() -> Configuration:
    """This process's settings: call > context > environment > file > default."""
    from ringspan_registry import Configuration

    from ringspan.settings import Settings

    return Configuration(Settings)


@lru_cache(maxsize=1)
def catalogue() -> Registry:
    """This process's plugins, discovered on first use."""
    from ringspan_registry import Registry

    from ringspan.contracts import hookspecs
    from ringspan.contracts.backend import AttentionBackend
    from ringspan.contracts.communicator import Communicator
    from ringspan.contracts.ordering import Ordering

    return Registry(
        group=hookspecs.ENTRY_POINT_GROUP,
        hookspecs=hookspecs,
        kinds=hookspecs.HOOK_KINDS,
        bases={"backend": AttentionBackend, "ordering": Ordering, "communicator": Communicator},
        configuration=configuration(),
    )
