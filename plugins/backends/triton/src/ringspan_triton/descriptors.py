"""Selections of rows as integers on the device: made once, so that no later call copies anything.

Kernels read these tables instead of taking every stride of every tensor as an argument.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from math import gcd
from typing import TYPE_CHECKING

import numpy as np
import torch
from ringspan.contracts import InvalidArgument
from ringspan.contracts.work import Affine, Indexed
from torch.utils.weak import WeakIdKeyDictionary

if TYPE_CHECKING:
    import numpy.typing as npt
    from jaxtyping import Int
    from ringspan.contracts.selection import Selection
    from torch import Tensor

__all__ = ["current", "inverse", "nested", "table", "unit"]

_KEPT = 4096
"""Tables of a few hundred bytes that are kept: more than any model has kinds of calls."""
_LARGEST_UNIT = 8
"""Strides that are multiples of it let a thread read 16 bytes at once, in every dtype."""


@lru_cache(maxsize=_KEPT)
def table(content: tuple[int, ...], device: torch.device) -> Int[Tensor, " numbers"]:
    """The numbers as int64 on `device`: the same tensor for the same numbers."""
    return torch.tensor(content, dtype=torch.int64, device=device)


def unit(*strides: int) -> int:
    """The largest of 1, 2, 4 and 8 that divides every stride.

    Strides read from a table tell a compiler nothing. Kernels read them in this unit and multiply
    by it, which says how rows are aligned.
    """
    return gcd(_LARGEST_UNIT, *strides)


def current(x: Tensor) -> AbstractContextManager[object]:
    """Makes the device of `x` the current one, where Triton launches its kernels."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def nested(selection: Selection) -> tuple[bool, int, int] | None:
    """How to find the tile `t` and the row `l` of `t * tile_step + l * step` by two divisions.

    Returns:
        Whether tiles are the outer of the two, the outer step and the inner one; None where the
        rows of different tiles are interlaced in some other way, or are no affine ones.

    Example:
        >>> from ringspan.contracts.selection import Selection
        >>> nested(Selection(Affine(0, 64, 0, 1), (0,), tiles=4, length=64))
        (True, 64, 1)
        >>> nested(Selection(Affine(0, 1, 0, 4), (0,), tiles=4, length=64))
        (False, 4, 1)
    """
    rows, tiles, length = selection.rows, selection.tiles, selection.length
    if not isinstance(rows, Affine):
        return None
    # A step that is never taken may be any.
    step = rows.step if length > 1 else 1
    tile_step = rows.tile_step if tiles > 1 else max(1, (length - 1) * step + 1)
    if min(step, tile_step) < 1:
        return None
    if tile_step > (length - 1) * step:
        return True, tile_step, step
    if step > (tiles - 1) * tile_step:
        return False, step, tile_step
    return None


_inverses: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By the tensor of an `Indexed`, which lives as long as the `Indexed` does: inverses by length."""


def inverse(selection: Selection, length: int, device: torch.device) -> Int[Tensor, "heads N"]:
    """Where in a piece each of `length` rows is: `t * L + l` in int32, or -1; by head, or for all.

    Raises:
        InvalidArgument: a row is twice in the piece, or beyond `length`.
    """
    rows = selection.rows
    if not isinstance(rows, Indexed):
        extent = (selection.tiles, len(selection.heads), selection.length)
        return _affine_inverse(rows, extent, length)[device]
    key = rows.on(device)
    if key not in _inverses:
        _inverses[key] = {}
    lengths: dict[int, Tensor] = _inverses[key]
    if length not in lengths:
        lengths[length] = torch.from_numpy(_inverted(rows.rows, length)).to(device)
    return lengths[length]


class _Copies(dict[torch.device, "Tensor"]):
    """A tensor on each device that asked for it."""

    def __init__(self, array: npt.NDArray[np.int32]) -> None:
        super().__init__()
        self._array = array

    def __missing__(self, device: torch.device) -> Tensor:
        self[device] = torch.from_numpy(self._array).to(device)
        return self[device]


@lru_cache(maxsize=_KEPT)
def _affine_inverse(rows: Affine, extent: tuple[int, int, int], length: int) -> _Copies:
    tile, head, row = np.ogrid[tuple(slice(size) for size in extent)]
    found = rows.start + tile * rows.tile_step + head * rows.head_step + row * rows.step
    return _Copies(_inverted(found, length))


def _inverted(rows: npt.NDArray[np.int64], length: int) -> npt.NDArray[np.int32]:
    """`[heads, length]` from rows `[T, heads, L]`."""
    by_head = rows.swapaxes(0, 1).reshape(rows.shape[1], -1)
    if rows.size and not 0 <= rows.min() <= rows.max() < length:
        raise InvalidArgument(
            "pieces",
            expected=f"rows 0..{length - 1}",
            got=f"rows {rows.min()}..{rows.max()}",
        )
    places = np.full((rows.shape[1], length), -1, dtype=np.int32)
    np.put_along_axis(places, by_head, np.arange(by_head.shape[1], dtype=np.int32)[None], 1)
    if (places >= 0).sum() < rows.size:
        raise InvalidArgument(
            "pieces",
            expected="every row at most once in a piece",
            got="a piece that has a row in several tiles",
            remedy="give such tiles as pieces of their own",
        )
    return places
