"""Rows of tiles as runs, where they need not be listed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["Lines", "listed"]


@dataclass(frozen=True, slots=True, eq=False)
class Lines:
    """Rows of tiles as runs: row `l` of tile `t` is `start[t] + step * l`."""

    start: Ints
    step: int
    length: int

    @property
    def shape(self) -> tuple[int, int]:
        """Tiles, and rows of each."""
        return len(self.start), self.length

    @property
    def listed(self) -> Ints:
        """`[T, L]`"""
        rows: Ints = self.start[:, None] + self.step * np.arange(self.length)
        return rows


def listed(rows: Ints | Lines) -> Ints:
    """`[T, L]`, whatever way the rows are held."""
    return rows.listed if isinstance(rows, Lines) else rows
