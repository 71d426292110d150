"""Patterns taken along an ordering: segments and dilations in places instead of positions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Listed, Runs
from ringspan.contracts.tokens import Coordinates, Sequence

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.contracts.pattern import Domain

    Positions = npt.NDArray[np.int64]

__all__ = ["Along", "taken"]


@dataclass(frozen=True)
class Along:
    """The ordering along which a pattern is taken.

    Args:
        ordering: name of an ordering plugin's provider, such as `"hilbert"`.
        fold: for a plain sequence, fold each segment on an invented, nearly square grid and
            follow the curve through it. Off by default because it harms locality: neighbours in
            the sequence part more often than they meet.

    Example:
        >>> Along("hilbert", fold=True)
        Along(ordering='hilbert', fold=True)
    """

    ordering: str
    fold: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.ordering, str) or not isinstance(self.fold, bool):
            raise InvalidArgument(
                "along",
                expected="the name of an ordering, or Along(name, fold=True or False)",
                got=f"ordering={self.ordering!r}, fold={self.fold!r}",
            )

    @staticmethod
    def of(along: Along | str | None) -> Along | None:
        """What a pattern's argument `along` stands for; None: positions.

        Raises:
            InvalidArgument: it is none of the three.
        """
        if isinstance(along, str):
            return Along(along)
        if along is None or isinstance(along, Along):
            return along
        raise InvalidArgument(
            "along", expected="the name of an ordering or Along(...)", got=repr(along)
        )

    def tokens_by_place(self, domain: Domain, segment_length: int) -> Positions:
        """The token at each place, int64 `[N]`, for segments of the given length.

        A document's tokens take the places that they have as positions; the curve restarts in
        each document, so that `domain.segments(segment_length)` cuts places.
        """
        return self.tokens_in(domain, *domain.segments(segment_length))

    def tokens_by_branch(self, domain: Domain, lengths: Iterable[int]) -> list[Positions]:
        """`tokens_by_place` for each of several segment lengths."""
        if self.fold:
            return [self.tokens_by_place(domain, length) for length in lengths]
        lengths = list(lengths)
        return [self.tokens_by_place(domain, lengths[0])] * len(lengths)

    def tokens_in(self, domain: Domain, starts: Positions, lengths: Positions) -> Positions:
        """The token at each place, int64 `[N]`, for segments with these starts and lengths."""
        if not self.fold:
            return _laid(
                domain.N,
                ((at, domain.order(self.ordering, alone.tokens)) for at, alone in domain.alone()),
            )
        if not isinstance(domain.tokens, Sequence):
            raise InvalidArgument(
                "along",
                expected="fold=True for a plain sequence only",
                got=f"fold=True with tokens={domain.tokens!r}",
                remedy="Drop fold=True: these tokens have coordinates of their own",
            )
        return _laid(
            domain.N,
            (
                (starts[lengths == length], domain.order(self.ordering, _folded(length)))
                for length in np.unique(lengths).tolist()
            ),
        )


def _laid(N: int, stretches: Iterable[tuple[Positions, Positions]]) -> Positions:
    """The order within a stretch of places, laid at every start of such a stretch."""
    tokens = np.empty(N, np.int64)
    for starts, order in stretches:
        tokens[starts[:, None] + np.arange(len(order))] = starts[:, None] + order
    return tokens


@lru_cache(maxsize=64)
def _folded(length: int) -> Coordinates:
    """A nearly square grid, filled row by row; the last row may be short."""
    columns = math.isqrt(length - 1) + 1
    return Coordinates(np.stack(np.divmod(np.arange(length), columns), axis=-1))


def taken(places: Runs, tokens: Positions | None) -> Runs | Listed:
    """Sets of places as sets of tokens, each in order of position; None: places are positions."""
    if tokens is None:
        return places
    listed = places.listed()
    return Listed(tokens[listed.rows], listed.bounds).ascending()
