"""Rings that many examples of a test share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

__all__ = ["Run", "worlds"]

Run = Callable[..., list[Any]]


class World(Protocol):
    """Ranks of any kind: processes or threads."""

    @property
    def usable(self) -> bool: ...

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]: ...

    def close(self) -> None: ...


@contextmanager
def worlds(begin: Callable[[int], World]) -> Iterator[Run]:
    """`run(world_size, function, *args)` calls `function(rank, *args)` on every rank.

    A world is begun once per size and reused while it is usable, so that calling it for every
    example is cheap.
    """
    known: dict[int, World] = {}

    def run(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
        if world_size not in known or not known[world_size].usable:
            known[world_size] = begin(world_size)
        return known[world_size].run(function, *args)

    yield run
    for world in known.values():
        world.close()
