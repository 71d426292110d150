"""For each position: which rank holds it, and in which of its rows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.pattern import Listed

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.plan.layout import Layout

    Ints = npt.NDArray[np.int64]

__all__ = ["Holdings"]

_FEW_RUNS = 2
"""As many as a zigzag rank holds."""


@dataclass(frozen=True, eq=False)
class Holdings:
    """The rows of each rank, as positions."""

    N: int
    positions: tuple[Ints, ...]
    """Per rank, the position of each of its rows."""

    @classmethod
    def of(cls, layout: Layout) -> Holdings:
        """All tokens of a layout."""
        return cls(
            layout.N,
            tuple(layout.order[a:b] for a, b in pairwise(layout.bounds)),
        )

    @classmethod
    def some(cls, positions: Ints, N: int) -> Holdings:
        """Some of `N` tokens, on one rank; each at most once."""
        return cls(N, (positions,))

    @cached_property
    def in_order(self) -> bool:
        """One rank holds every token, in order of position."""
        return len(self.positions) == 1 and bool(
            np.array_equal(self.positions[0], np.arange(self.N))
        )

    @cached_property
    def few_runs(self) -> bool:
        """Every rank holds a run or two of consecutive positions: contiguous and zigzag ranks."""
        breaks = (int(np.count_nonzero(np.diff(held) != 1)) for held in self.positions)
        return all(count < _FEW_RUNS for count in breaks)

    @cached_property
    def dealt(self) -> bool:
        """Tokens were dealt to the ranks in turn: each rank's positions are evenly spaced."""
        ranks = len(self.positions)
        return all(bool((np.diff(held) == ranks).all()) for held in self.positions)

    @cached_property
    def _owner(self) -> Ints:
        owner = np.full(self.N, -1, dtype=np.int64)
        for rank, held in enumerate(self.positions):
            owner[held] = rank
        return owner

    @cached_property
    def _row(self) -> Ints:
        row = np.full(self.N, -1, dtype=np.int64)
        for held in self.positions:
            row[held] = np.arange(len(held))
        return row

    def stored(self, sets: Listed) -> Listed:
        """The same sets, each in the order in which ranks hold it; sets come in order of position.

        A position that nobody holds may stand anywhere.
        """
        return sets if self.in_order else sets.sorted_by(self._row)

    def rows(self, positions: Ints) -> Ints:
        """The row of each position on the rank that holds it."""
        return positions if self.in_order else self._row[positions]

    def held(self, sets: Listed, rank: int) -> tuple[Listed, npt.NDArray[np.bool_] | None]:
        """The part of each set that `rank` holds, and which rows that is; None: all of them."""
        if self.in_order:
            return sets, None
        known = self._held.get((id(sets), rank))
        if known is None:
            mine = self._owner[sets.rows] == rank
            part = Listed(sets.rows[mine], counted(mine)[sets.bounds])
            # With the sets, so that no others take their place in memory.
            known = self._held[id(sets), rank] = part, mine, sets
        return known[:2]

    @cached_property
    def _held(self) -> dict[tuple[int, int], tuple[Listed, npt.NDArray[np.bool_], Listed]]:
        return {}


def counted(chosen: npt.NDArray[np.bool_]) -> Ints:
    """How many are chosen before each place, and before the end."""
    before = np.zeros(len(chosen) + 1, dtype=np.int64)
    np.cumsum(chosen, out=before[1:])
    return before
