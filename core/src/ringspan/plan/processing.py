"""In which order blocks are computed, where tokens are stored along a curve."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.pattern import Blocks, Listed, Part

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.plan.layout import Layout

    Ints = npt.NDArray[np.int64]

__all__ = ["stored_order"]


def stored_order(part: Part, layout: Layout) -> Part:
    """Blocks in the order in which their first tokens are stored; other parts as they are.

    Who sees whom stays the same: a pattern chooses its blocks, and storage only says which of
    them are computed one after the other, so that their keys are near each other in memory.
    """
    if not isinstance(part, Blocks) or part.sets is layout.stored_blocks:
        return part
    sets = part.sets.listed()
    lengths = np.diff(sets.bounds)
    place = np.empty(layout.N, np.int64)
    place[layout.order] = np.arange(layout.N)
    # Empty blocks, if any, stand at the end.
    first = np.full(len(lengths), layout.N)
    some = lengths > 0
    if some.any():
        first[some] = np.minimum.reduceat(place[sets.rows], sets.bounds[:-1][some])
    blocks = np.argsort(first, kind="stable")
    if np.array_equal(blocks, np.arange(len(blocks))):
        return part
    number = np.empty_like(blocks)
    number[blocks] = np.arange(len(blocks))
    seen = Listed(number[part.indices], part.indptr).chosen(blocks).ascending()
    return replace(part, sets=sets.chosen(blocks), indptr=seen.bounds, indices=seen.rows)
