"""Patterns taken along an ordering: segments and dilations in places instead of positions."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.tokens import Coordinates, Sequence

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.contracts.pattern import Domain

    Positions = npt.NDArray[np.int64]

__all__ = ["Along"]


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

    def tokens_by_place(self, domain: Domain, segment_length: int) -> Positions:
        """The token at each place, int64 `[N]`, for segments of the given length.

        Documents keep the places that they have as positions; the curve restarts in each.
        """
        if not self.fold:
            return _laid(
                (starts, domain.order(self.ordering, document.tokens))
                for starts, document in domain.alone()
            )
        if not isinstance(domain.tokens, Sequence):
            raise InvalidArgument(
                "along",
                expected="fold=True for a plain sequence only",
                got=f"fold=True with tokens={domain.tokens!r}",
                remedy="Drop fold=True: these tokens have coordinates of their own",
            )
        starts, lengths = domain.segments(segment_length)
        return _laid(
            (starts[lengths == length], domain.order(self.ordering, _folded(length)))
            for length in np.unique(lengths).tolist()
        )


def _laid(stretches: Iterable[tuple[Positions, Positions]]) -> Positions:
    """The order within each stretch of places, at every start of such a stretch."""
    found = list(stretches)
    tokens = np.empty(sum(len(starts) * len(order) for starts, order in found), np.int64)
    for starts, order in found:
        places = starts[:, None] + np.arange(len(order))
        tokens[places] = starts[:, None] + order
    return tokens


@lru_cache(maxsize=64)
def _folded(length: int) -> Coordinates:
    """A nearly square grid, filled row by row; the last row may be short."""
    columns = math.isqrt(length - 1) + 1
    return Coordinates(np.stack(np.divmod(np.arange(length), columns), axis=-1))
