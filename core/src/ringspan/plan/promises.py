"""What a part of somebody else's pattern must be, checked before it becomes a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import BrokenContract
from ringspan.contracts.pattern import Blocks, Cliques, Domain, Listed, Part, Pattern, Windows

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["check_part"]


def check_part(pattern: Pattern, part: Part, domain: Domain) -> None:
    """Refuses a part that would be computed into nonsense.

    Patterns of the library keep their promises by test, and are not asked at every plan.
    """
    if type(pattern).__module__.startswith("ringspan.patterns."):
        return
    name = f"pattern {type(pattern).__name__}"
    if not isinstance(part, Cliques | Windows | Blocks):
        _refuse(name, "parts that are Cliques, Windows or Blocks", type(part).__name__)
    heads = part.heads
    if len(set(heads)) != len(heads) or not all(0 <= head < domain.heads for head in heads):
        _refuse(name, f"query heads of 0 .. {domain.heads - 1}, each once", repr(heads))
    sets = part.sets.listed()
    if len(sets.bounds) < 1 or (np.diff(sets.bounds) < 0).any() or sets.bounds[-1] != sets.size:
        _refuse(name, "bounds that ascend from 0 to the number of rows", repr(sets.bounds))
    if sets.size and not (sets.rows.min() >= 0 and sets.rows.max() < domain.N):
        _refuse(name, f"tokens of 0 .. {domain.N - 1}", f"{sets.rows.min()} .. {sets.rows.max()}")
    repeated = np.bincount(sets.rows, minlength=domain.N) > 1
    if repeated.any():
        _refuse(name, "no token twice in a part", f"token {int(repeated.argmax())} twice")
    if isinstance(part, Windows):
        _check_windows(name, part, sets)
    if isinstance(part, Blocks):
        _check_blocks(name, part, len(sets.bounds) - 1)


def _check_windows(name: str, part: Windows, sets: Listed) -> None:
    if len(part.low) != sets.size or len(part.high) != sets.size:
        _refuse(
            name, f"one low and high per row, {sets.size}", f"{len(part.low)}, {len(part.high)}"
        )
    lengths = np.repeat(np.diff(sets.bounds), np.diff(sets.bounds))
    if sets.size and (part.low.min() < 0 or (part.high > lengths).any()):
        _refuse(name, "windows within their set", f"{part.low.min()} .. {part.high.max()}")
    inner = np.ones(max(0, sets.size - 1), dtype=np.bool_)
    borders = sets.bounds[(sets.bounds > 0) & (sets.bounds < sets.size)]
    inner[borders - 1] = False
    if any((np.diff(bound)[inner] < 0).any() for bound in (part.low, part.high)):
        _refuse(name, "low and high that never descend within a set", "a descent")


def _check_blocks(name: str, part: Blocks, count: int) -> None:
    indptr, indices = part.indptr, part.indices
    if len(indptr) != count + 1 or indptr[0] != 0 or indptr[-1] != len(indices):
        _refuse(name, f"indptr of {count + 1} from 0 to {len(indices)}", repr(indptr))
    if len(indices) and not (indices.min() >= 0 and indices.max() < count):
        _refuse(name, f"blocks of 0 .. {count - 1}", f"{indices.min()} .. {indices.max()}")
    row = np.repeat(np.arange(count), np.diff(indptr))
    if (np.diff(row * count + indices) <= 0).any():
        _refuse(name, "the blocks of a row ascending, each once", "a repetition or a descent")


def _refuse(name: str, expected: str, got: str) -> None:
    raise BrokenContract(name, expected=expected, got=got)
