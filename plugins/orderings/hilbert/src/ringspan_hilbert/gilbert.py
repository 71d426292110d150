"""Keys along a continuous curve through a box of any size, by a table of its parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch

from ringspan_hilbert.splitting import CHILDREN, Boxes, Child, Split, split

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["Parts", "gilbert_word", "levels_of_word", "parts"]


WORD = 48
"""Bits of a key's word: levels take time, and after so many most points have parted."""


@dataclass(frozen=True, slots=True, eq=False)
class Parts:
    """Every shape of box that splitting one box brings about, level by level.

    There are few: a box of 1000 x 1000 cells falls into a million cells through about a hundred
    shapes. A point is followed from the box to its cell by looking them up.
    """

    cuts: Int[Tensor, "axes S"]
    """int32: a point is in the lower part of shape `s` along an axis if its distance from the
    lower corner is less than this; 0 where the axis is not cut."""
    steps: Int[Tensor, "S lower"]
    """int32: for each set of axes along which a point is in the lower part (bit `i`: axis `i`),
    the shape of that part times 8, plus its number along the curve."""
    corners: Int[Tensor, "axes S lower"]
    """int32: the lower corner of that part, from that of the box."""
    levels: int
    """After so many splits all that is left are cells."""

    @property
    def digit_bits(self) -> int:
        """Bits of a part's number: of three in a plane, and of five in space."""
        return 3 if len(self.cuts) == 3 else 2

    def to(self, device: torch.device) -> Parts:
        """On that device."""
        tables = (self.cuts, self.steps, self.corners)
        cuts, steps, corners = (table.to(device) for table in tables)
        return Parts(cuts, steps, corners, self.levels)


def levels_of_word(word: int, parts: Parts) -> tuple[int, int]:
    """The first level whose digits a word of the key holds, and one after the last."""
    per_word = WORD // parts.digit_bits
    return min(word * per_word, parts.levels), min((word + 1) * per_word, parts.levels)


def gilbert_word(axes: Sequence[Int[Tensor, " N"]], parts: Parts, word: int) -> Int[Tensor, " N"]:
    """One int64 word of the points' keys, word 0 the most significant.

    Args:
        axes: coordinates, int32 `[N]` each, in the box that `parts` are of.
        parts: on the same device.
        word: which.
    """
    first, last = levels_of_word(word, parts)
    rest = [axis.clone() for axis in axes]
    step, found = torch.zeros_like(rest[0]), torch.empty_like(rest[0])
    key = torch.zeros_like(rest[0], dtype=torch.int64)
    cuts, steps, n = parts.cuts, parts.steps.flatten(), len(axes)
    corners = parts.corners.flatten(start_dim=1)
    for level in range(last):
        shape = step >> 3
        at = shape << n
        for i, axis in enumerate(rest):
            torch.index_select(cuts[i], 0, shape, out=found)
            # All ones where the point is lower: the sign of the difference, spread.
            torch.sub(axis, found, out=found).bitwise_right_shift_(31)
            at.sub_(found, alpha=1 << i)
        for axis, corner in zip(rest, corners, strict=True):
            axis -= torch.index_select(corner, 0, at, out=found)
        torch.index_select(steps, 0, at, out=step)
        if level >= first:
            key.bitwise_left_shift_(parts.digit_bits).bitwise_or_(step & 7)
    return key


@lru_cache(maxsize=64)
def parts(sizes: tuple[int, ...]) -> Parts:
    """The parts of a box of these sizes, one to three of them; the first axis leads."""
    n = len(sizes)
    boxes, numbers = Boxes.root(sizes), 1
    tables: list[tuple[npt.NDArray[np.int64], ...]] = []
    while True:
        boxes, kinds, first = split(boxes)
        digits = _digits(boxes, kinds)
        following, step = _steps(boxes, kinds, first, digits, numbers)
        cut = _cuts(boxes, first)
        corner = _corners(boxes, kinds, digits, cut)
        tables.append((cut[:, :n], step[:, : 1 << n], corner[:, : 1 << n, :n]))
        if (kinds == Split.CELL).all():
            break
        boxes, numbers = following, numbers + len(following.sizes)
    # The last level only leads to itself, and is never left.
    cuts, steps, corners = (np.concatenate(table) for table in zip(*tables, strict=True))
    corners = np.moveaxis(corners, 2, 0)
    return Parts(_int32(cuts.T), _int32(steps), _int32(corners), levels=len(tables) - 1)


def _int32(x: npt.NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(x, dtype=np.int32))


def _cuts(boxes: Boxes, first: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """By axis of space, from the lower corner; 0 where the axis is not cut."""
    lower = np.where(boxes.mirrored == 1, boxes.sizes - first, first)
    cuts = np.empty_like(lower)
    np.put_along_axis(cuts, boxes.axes, np.where(first > 0, lower, 0), axis=1)
    return cuts


def _corners(
    boxes: Boxes,
    kinds: npt.NDArray[np.int64],
    digits: npt.NDArray[np.int64],
    cuts: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The lower corner of the part in which each set of lower halves lies, `[S, 8, 3]`."""
    local = _DIVIDES[kinds[:, None], digits]
    divides = np.empty_like(local)
    np.put_along_axis(divides, np.broadcast_to(boxes.axes[:, None], local.shape), local, axis=2)
    upper = 1 - (np.arange(8)[:, None] >> np.arange(3) & 1)
    corners: npt.NDArray[np.int64] = cuts[:, None] * upper * divides
    return corners


def _steps(
    boxes: Boxes,
    kinds: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    digits: npt.NDArray[np.int64],
    start: int,
) -> tuple[Boxes, npt.NDArray[np.int64]]:
    """The distinct parts, and for each box and set of lower halves the part, as `Parts` has it.

    The parts are numbered from `start`.
    """
    found: list[Boxes] = []
    number = np.zeros((len(kinds), 5), np.int64)
    counted = 0
    for kind in Split:
        rows = (kinds == kind).nonzero()[0]
        of_kind = Boxes(*(column[rows] for column in boxes.columns))
        for digit, child in enumerate(CHILDREN[kind]):
            found.append(of_kind.child(child, first[rows]))
            number[rows, digit] = counted + np.arange(len(rows))
            counted += len(rows)
    following, which = Boxes.joined(found).distinct()
    number = which[number] + start
    return following, np.take_along_axis(number, digits, axis=1) * 8 + digits


def _digits(boxes: Boxes, kinds: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of the part along the curve, for each box and set of lower halves, `[S, 8]`."""
    lower = np.arange(8)[None, :, None] >> boxes.axes[:, None, :] & 1
    second = 1 - lower ^ boxes.mirrored[:, None, :]
    halves = (second << np.arange(3)).sum(axis=2)
    digits: npt.NDArray[np.int64] = _BY_HALVES[kinds[:, None], halves]
    return digits


def _holds(child: Child, halves: int) -> bool:
    return all(part in (2, halves >> axis & 1) for axis, part in enumerate(child.parts))


_BY_HALVES = np.array(
    [
        [
            next(i for i, child in enumerate(CHILDREN[kind]) if _holds(child, halves))
            for halves in range(8)
        ]
        for kind in Split
    ]
)
"""By kind of split: the part that holds the second half along the axes whose bits are set."""

_DIVIDES = np.zeros((len(Split), 5, 3), np.int64)
"""By kind of split and part: 1 for each axis of which the part is not all."""
for _kind, _children in CHILDREN.items():
    for _i, _child in enumerate(_children):
        _DIVIDES[_kind, _i] = [part != 2 for part in _child.parts]
