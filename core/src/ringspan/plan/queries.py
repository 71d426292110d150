"""Queries that are not all tokens of the sequence: chunks of it, or another sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ringspan.contracts.held import Held, integers

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["QueryPositions"]


class QueryPositions(Held):
    """Where queries stand among the keys' positions `0 .. N - 1`, known by their digest.

    Without positions they are another sequence: `length` queries that see every key.
    """

    __slots__ = ("length",)
    kind: ClassVar[str] = "query_positions"
    length: int

    def __init__(self, positions: Any = None, *, length: int = 0) -> None:
        if positions is None:
            array = np.array([length])
            self.length = length
            self._hold(array)
        else:
            array = integers("query_positions", positions, expected="integers [Nq], >= 0")
            self.length = len(array)
            self._hold(array, np.zeros(0, np.int64))

    @property
    def positions(self) -> npt.NDArray[np.int64] | None:
        """int64 `[Nq]`, or None for another sequence."""
        return self.arrays[0] if len(self.arrays) == 2 else None
