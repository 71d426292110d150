"""Which plugins and settings this process has."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from ringspan_registry import Configuration, Registry

__all__ = ["catalogue", "configuration"]


Made = TypeVar("Made")


class _Once(Generic[Made]):
    """Makes something when it is first asked for.

    Threads that ask at once get the same: a context entered on a second configuration would be
    lost on the first.
    """

    def __init__(self, make: Callable[[], Made]) -> None:
        self._made = lru_cache(maxsize=1)(make)
        self._lock = threading.RLock()
        self.__doc__ = make.__doc__

    def __call__(self) -> Made:
        with self._lock:
            return self._made()

    def cache_clear(self) -> None:
        """Has it made anew."""
        self._made.cache_clear()


@_Once
def configuration() -> Configuration:
    """This process's settings: call > context > environment > file > default."""
    from ringspan_registry import Configuration

    from ringspan.settings import Settings

    return Configuration(Settings)


@_Once
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
