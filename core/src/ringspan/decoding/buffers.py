"""Room for keys and values that grows with what has come, up to a bound."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringspan.decoding.sizes import Sizes

__all__ = ["Buffers"]

_FIRST_ROWS = 256


class Buffers:
    """Keys `[lanes, B, rows, D]` and values `[lanes, B, rows, Dv]`, with room for some rows.

    Args:
        sizes: of all that enters.
        lanes: how many keys and values there are per row and sequence.
        most: rows that are ever asked for; None: no bound.
    """

    def __init__(self, sizes: Sizes, lanes: int, most: int | None = None) -> None:
        self._sizes, self._lanes, self._most = sizes, lanes, most
        self.key, self.value = sizes.buffers(lanes, self._bounded(_FIRST_ROWS))

    @property
    def rows(self) -> int:
        """For how many rows there is room."""
        return self.key.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of the room, filled or not."""
        return self.key.nbytes + self.value.nbytes

    def reserve(self, rows: int) -> None:
        """Makes room for at least so many rows, and keeps what is there; doubles, if it must."""
        held = self.rows
        if rows <= held:
            return
        old = self.key, self.value
        self.key, self.value = new = self._sizes.buffers(
            self._lanes, self._bounded(max(rows, 2 * held))
        )
        for wider, narrower in zip(new, old, strict=True):
            wider[:, :, :held] = narrower

    def _bounded(self, rows: int) -> int:
        return rows if self._most is None else min(rows, self._most)
