"""How a box is split along a curve that leaves it beside where it came in.

The curve through a box of `w x h x d` cells runs from the corner (0, 0, 0) to (w - 1, 0, 0): along
the axis that *leads*. A box is split into two, three or five, each of which is crossed in the
same way, so that each begins beside the cell where the one before it ends. The idea is that of
J. Cerveny's generalized Hilbert curve; where boxes are cut, and which of the two axes that
follow is which, is decided anew here:

- A cut leaves the largest power of two below the size on the side where the curve comes in, so
  that most parts are squares or cubes as Hilbert's are, and few blocks of places straddle them.
- In a split into five, the axis that is never led along in full is an odd one, where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

__all__ = ["CHILDREN", "Boxes", "Child", "Split", "split"]


class Split(IntEnum):
    """Into what a box is split."""

    CELL = 0
    """It is one cell, and is not."""
    TWO = 1
    """Halves along the leading axis: long boxes."""
    THREE = 2
    """Out along one half of the leading axis, across, and back: up, over and down again."""
    FIVE = 3
    """The same in space."""


class Child(NamedTuple):
    """One part of a split box, in the frame of the box."""

    parts: tuple[int, int, int]
    """Of each axis the first part (0), the second (1) or all of it (2)."""
    order: tuple[int, int, int] = (0, 1, 2)
    """Which axes of the box lead, follow and come last in the part."""
    mirrored: tuple[int, ...] = ()
    """Axes of the box along which the part is crossed backwards."""


CHILDREN = {
    Split.CELL: (Child((2, 2, 2)),),
    Split.TWO: (Child((0, 2, 2)), Child((1, 2, 2))),
    Split.THREE: (
        Child((0, 0, 2), (1, 2, 0)),
        Child((2, 1, 2)),
        Child((1, 0, 2), (1, 2, 0), mirrored=(0, 1)),
    ),
    Split.FIVE: (
        Child((0, 0, 0), (1, 2, 0)),
        Child((0, 1, 2), (2, 0, 1)),
        Child((2, 0, 1), mirrored=(1, 2)),
        Child((1, 1, 2), (2, 0, 1), mirrored=(0, 2)),
        Child((1, 0, 0), (1, 2, 0), mirrored=(0, 1)),
    ),
}
"""The parts in the order in which the curve crosses them."""


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """Boxes in their own frames: `[S, 3]` each, by leading, following and last axis.

    `sizes` in cells; `axes`, which axis of space each is; `mirrored`, 1 where the curve comes in
    at the far end of it.
    """

    sizes: npt.NDArray[np.int64]
    axes: npt.NDArray[np.int64]
    mirrored: npt.NDArray[np.int64]

    @classmethod
    def root(cls, sizes: tuple[int, ...]) -> Boxes:
        """One box, whose first axis leads."""
        padded = [*sizes, 1, 1][:3]
        return cls(np.array([padded]), np.array([[0, 1, 2]]), np.zeros((1, 3), np.int64))

    @classmethod
    def joined(cls, boxes: list[Boxes]) -> Boxes:
        """One after another."""
        return cls(*(np.concatenate(x) for x in zip(*(b.columns for b in boxes), strict=True)))

    @property
    def columns(self) -> tuple[npt.NDArray[np.int64], ...]:
        """Sizes, axes and mirrored."""
        return self.sizes, self.axes, self.mirrored

    def turned(self, order: npt.NDArray[np.int64]) -> Boxes:
        """With the axes `order`, `[S, 3]`, leading, following and last."""
        return Boxes(*(np.take_along_axis(column, order, axis=1) for column in self.columns))

    def distinct(self) -> tuple[Boxes, npt.NDArray[np.int64]]:
        """Each box once, and which of those each box is."""
        # How one cell is entered makes no difference.
        mirrored = np.where(self.sizes == 1, 0, self.mirrored)
        rows = np.concatenate([self.sizes, self.axes, mirrored], axis=1)
        rows, numbers = np.unique(rows, axis=0, return_inverse=True)
        return Boxes(rows[:, :3], rows[:, 3:6], rows[:, 6:]), numbers.reshape(-1)

    def child(self, child: Child, cuts: npt.NDArray[np.int64]) -> Boxes:
        """That part of each box, in its own frame."""
        part = np.array(child.parts)
        sizes = np.where(part == 0, cuts, np.where(part == 1, self.sizes - cuts, self.sizes))
        mirrored = self.mirrored.copy()
        mirrored[:, list(child.mirrored)] ^= 1
        order = list(child.order)
        return Boxes(sizes[:, order], self.axes[:, order], mirrored[:, order])


def split(boxes: Boxes) -> tuple[Boxes, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How each box is split.

    Returns:
        The same boxes with their axes in the order in which the split takes them; the kind of
        each split, `[S]`; and the size of the first part along each axis, `[S, 3]`, 0 where
        it is not cut.
    """
    boxes = _arranged(_led(boxes))
    w, h, d = boxes.sizes.T
    kinds = np.full(len(w), Split.FIVE)
    kinds[3 * h > 4 * d] = Split.THREE
    kinds[(2 * w > 3 * h) & (2 * w > 3 * d)] = Split.TWO
    kinds[boxes.sizes.max(axis=1) == 1] = Split.CELL
    cuts = _first_part(boxes.sizes)
    # One slice would be entered and left at the same corner, which no path through it can do.
    slice_left = (kinds == Split.TWO) & (w - cuts[:, 0] == 1) & (h * d > 1)
    cuts[slice_left, 0] //= 2
    is_cut = np.array([[any(c.parts[i] < 2 for c in CHILDREN[k]) for i in range(3)] for k in Split])
    return boxes, kinds, np.where(is_cut[kinds], cuts, 0)


def _led(boxes: Boxes) -> Boxes:
    """Along an axis of one cell nothing can lead: the next one does."""
    first = np.argmax(boxes.sizes > 1, axis=1)
    return boxes.turned((first[:, None] + np.arange(3)) % 3)


def _arranged(boxes: Boxes) -> Boxes:
    """Puts that axis second which a split into three, or into five, needs there."""
    _, h, d = boxes.sizes.T
    alike = (3 * h <= 4 * d) & (3 * d <= 4 * h)
    swapped = (3 * d > 4 * h) | (alike & (d % 2 == 1) & (h % 2 == 0))
    return boxes.turned(np.where(swapped[:, None], [0, 2, 1], [0, 1, 2]))


def _first_part(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The largest power of two below the size; 0 of one cell."""
    # Doubles hold these integers and their exponents exactly.
    return np.where(sizes > 1, 1 << (np.frexp(sizes - 1)[1] - 1).clip(0).astype(np.int64), 0)
