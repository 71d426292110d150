"""Which work is the first to touch its rows, and may write where later work must merge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.work import Affine, Rows, Tiles
from ringspan.plan.steps import Step

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["mark_first"]


class _Touches:
    """Counts the work on each row of each head, in plan order."""

    def __init__(self, kv_heads: int, rows: int) -> None:
        self._counts = np.zeros((kv_heads, rows), dtype=np.int32)
        self._firsts = 0

    def add(self, rows: Rows, heads: Sequence[int], tiles: int, length: int) -> bool:
        """Whether none of these rows was touched before."""
        if isinstance(rows, Affine):
            counts = self._view(rows, heads, tiles, length)
            first = not counts.any()
            counts += 1
        else:
            at = (np.asarray(heads)[:, None], rows.rows)
            first = not self._counts[at].any()
            self._counts[at] += 1
        self._firsts += tiles * len(heads) * length if first else 0
        return first

    def _view(
        self, rows: Affine, heads: Sequence[int], tiles: int, length: int
    ) -> npt.NDArray[np.int32]:
        head_bytes, row_bytes = self._counts.strides
        between = heads[1] - heads[0] if len(heads) > 1 else 0
        return np.lib.stride_tricks.as_strided(
            self._counts[heads[0], rows.start :],
            (tiles, len(heads), length),
            (
                rows.tile_step * row_bytes,
                between * head_bytes + rows.head_step * row_bytes,
                rows.step * row_bytes,
            ),
        )

    @property
    def one_piece(self) -> bool:
        return not (self._counts > 1).any()

    @property
    def covered(self) -> bool:
        return self._firsts == self._counts.size


def mark_first(
    steps: tuple[Step, ...], rows: int, kv_heads: int
) -> tuple[tuple[Step, ...], dict[str, bool]]:
    """Marks work that no earlier work overlaps, which may write instead of merge.

    The local step is computed first in the forward pass and last in the backward pass.
    Gradients of keys are written only where nothing arrives from other ranks.
    """
    forward, backward, key = (_Touches(kv_heads, rows) for _ in range(3))
    alone = len(steps) == 1
    backward_first = {
        id(tiles): backward.add(tiles.query, tiles.query_heads, tiles.count, tiles.query_length)
        for step in (*steps[1:], *steps[:1])
        for tiles in step.tiles
    }

    def marked(tiles: Tiles) -> Tiles:
        return dataclasses.replace(
            tiles,
            forward_first=forward.add(
                tiles.query, tiles.query_heads, tiles.count, tiles.query_length
            ),
            backward_first=backward_first[id(tiles)],
            key_first=alone and key.add(tiles.key, tiles.key_heads, tiles.count, tiles.key_length),
        )

    steps = tuple(
        dataclasses.replace(step, tiles=tuple(marked(tiles) for tiles in step.tiles))
        for step in steps
    )
    return steps, {
        "one_piece": forward.one_piece,
        "key_one_piece": alone and key.one_piece,
        "forward_covered": forward.covered,
        "backward_covered": backward.covered,
        "key_covered": alone and key.covered,
    }
