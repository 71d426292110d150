"""Which block sees which, by rules that serve any number of blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ringspan.patterns.integers import checked_integer

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["DilatedBlocks", "LocalBlocks", "LocalGlobalBlocks", "SymbolicBlocks"]


def _check(kind: object, **least: int) -> None:
    for name, value in least.items():
        object.__setattr__(kind, name, checked_integer(name, getattr(kind, name), least=value))


class SymbolicBlocks(ABC):
    """A rule by which a block sees others of its document."""

    @abstractmethod
    def rows(self, number: Ints, count: Ints) -> tuple[Ints, Ints]:
        """Compressed rows: for each block, those it sees, ascending.

        Block `number[i]` is one of the `count[i]` blocks of its document; blocks are counted
        over all documents in the result.
        """


@dataclass(frozen=True)
class LocalBlocks(SymbolicBlocks):
    """Block `i` sees the blocks `i - left .. i + right`."""

    left: int
    right: int

    def __post_init__(self) -> None:
        _check(self, left=0, right=0)

    def rows(self, number: Ints, count: Ints) -> tuple[Ints, Ints]:
        """See `SymbolicBlocks`."""
        low, high = _local(self, number, count)
        return _compressed(number, (low, high - low))


@dataclass(frozen=True)
class LocalGlobalBlocks(SymbolicBlocks):
    """As `LocalBlocks`, and the first `global_blocks` see all blocks and are seen by all."""

    left: int
    right: int
    global_blocks: int

    def __post_init__(self) -> None:
        _check(self, left=0, right=0, global_blocks=0)

    def rows(self, number: Ints, count: Ints) -> tuple[Ints, Ints]:
        """See `SymbolicBlocks`."""
        low, high = _local(self, number, count)
        first = min(self.global_blocks, len(number))
        leading = np.where(number < first, count, np.minimum(first, low))
        # The global blocks that come before a block's own run, and that run.
        low = np.maximum(low, leading)
        return _compressed(
            number, (np.zeros_like(low), leading), (low, np.maximum(high, low) - low)
        )


@dataclass(frozen=True)
class DilatedBlocks(SymbolicBlocks):
    """Block `i` sees the blocks `i + dilation * t` for every `-reach <= t <= reach`."""

    reach: int
    dilation: int

    def __post_init__(self) -> None:
        _check(self, reach=0, dilation=1)

    def rows(self, number: Ints, count: Ints) -> tuple[Ints, Ints]:
        """See `SymbolicBlocks`."""
        dilation, reach = (min(value, len(number)) for value in (self.dilation, self.reach))
        before = np.minimum(number // dilation, reach)
        after = np.minimum((count - 1 - number) // dilation, reach)
        run = number - before * dilation, before + 1 + after
        return _compressed(number, run, step=dilation)


def _local(kind: LocalBlocks | LocalGlobalBlocks, number: Ints, count: Ints) -> tuple[Ints, Ints]:
    left, right = (min(reach, len(number)) for reach in (kind.left, kind.right))
    return np.maximum(number - left, 0), np.minimum(number + right + 1, count)


def _compressed(number: Ints, *runs: tuple[Ints, Ints], step: int = 1) -> tuple[Ints, Ints]:
    """Rows of one or more runs per block, each `low + step * (0 .. length)` in its document."""
    low, length = (np.stack(bounds, axis=1) for bounds in zip(*runs, strict=True))
    document = np.arange(len(number)) - number
    start, lengths = (document[:, None] + low).ravel(), length.ravel()
    place = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    indptr = np.append(0, np.cumsum(length.sum(axis=1)))
    return indptr, np.repeat(start, lengths) + step * place
