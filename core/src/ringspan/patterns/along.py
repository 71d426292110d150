"""Patterns taken along an ordering: segments and dilations in places instead of positions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.tokens import Coordinates, Sequence

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.contracts.pattern import Domain

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

    def tokens_by_place(self, domain: Domain, segment_length: int) -> npt.NDArray[np.int64]:
        """The token at each place, int64 `[N]`, for segments of the given length."""
        if not self.fold:
            return domain.order(self.ordering, domain.tokens)
        if not isinstance(domain.tokens, Sequence):
            raise InvalidArgument(
                "along",
                expected="fold=True for a plain sequence only",
                got=f"fold=True with tokens={domain.tokens!r}",
                remedy="Drop fold=True: these tokens have coordinates of their own",
            )
        starts = np.arange(0, domain.N, segment_length, dtype=np.int64)
        return np.concatenate(
            [
                start + domain.order(self.ordering, _folded(min(segment_length, domain.N - start)))
                for start in starts.tolist()
            ]
            or [starts]
        )


@lru_cache(maxsize=64)
def _folded(length: int) -> Coordinates:
    """A nearly square grid, filled row by row; the last row may be short."""
    columns = math.isqrt(length - 1) + 1
    return Coordinates(np.stack(np.divmod(np.arange(length), columns), axis=-1))
