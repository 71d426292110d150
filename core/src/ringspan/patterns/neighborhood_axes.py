"""Tokens on the axes of a neighbourhood: where each stands, and which places it sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.pattern import Domain
from ringspan.patterns.neighborhood_rule import AxisRule

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["Axis", "Boxes"]


@dataclass(frozen=True, slots=True, eq=False)
class Boxes:
    """The bounding box of every document that has tokens."""

    number: Ints
    """Of each token, the number of its box, `[N]`."""
    origin: Ints
    """`[boxes, axes]`"""
    extent: Ints
    """`[boxes, axes]`"""

    @classmethod
    def of(cls, domain: Domain) -> Boxes:
        """Of tokens with coordinates; without documents, they have one box."""
        points = domain.tokens.coordinates
        assert points is not None
        there = domain.lengths > 0
        starts, lengths = domain.starts[there], domain.lengths[there]
        if not len(starts):
            none = np.zeros((0, points.shape[1]), np.int64)
            return cls(np.zeros(0, np.int64), none, none)
        origin = np.minimum.reduceat(points, starts, axis=0)
        extent = np.maximum.reduceat(points, starts, axis=0) - origin + 1
        return cls(np.repeat(np.arange(len(starts)), lengths), origin, extent)

    @property
    def largest(self) -> list[int]:
        """The largest extent on each axis."""
        largest: list[int] = self.extent.max(axis=0, initial=1).tolist()
        return largest

    @property
    def cells(self) -> float:
        """Points of all boxes."""
        return float(self.extent.prod(axis=1, dtype=np.float64).sum())


@dataclass(frozen=True, slots=True, eq=False)
class Axis:
    """An axis unfolded: the residue classes of each document one after the other.

    So that a token sees one run of places, whatever the dilation.
    """

    place: Ints
    """Where each token stands, `[N]`."""
    low: Ints
    high: Ints
    """A token sees the places `low .. high - 1`, `[N]` each."""
    span: int
    """Places for each class of each document."""
    size: int
    """Places of all."""

    @classmethod
    def all(cls, rules: tuple[AxisRule, ...], domain: Domain, boxes: Boxes) -> tuple[Axis, ...]:
        """Every axis of tokens with coordinates."""
        points = domain.tokens.coordinates
        assert points is not None
        inside = points - boxes.origin[boxes.number]
        extent = boxes.extent[boxes.number]
        return tuple(
            # Where documents part on one axis, they need not on the others.
            cls.of(rule, inside[:, axis], extent[:, axis], boxes.number if axis == 0 else 0)
            for axis, rule in enumerate(rules)
        )

    @classmethod
    def of(cls, rule: AxisRule, coordinate: Ints, extent: Ints, document: Ints | int) -> Axis:
        """From each token's coordinate, the extent of its box and its document's number."""
        number, residue = np.divmod(coordinate, rule.dilation)
        low, high = rule.keys(number, -(-(extent - residue) // rule.dilation))
        family = document * (int(residue.max(initial=0)) + 1) + residue
        span = int(number.max(initial=0)) + 1
        size = (int(family.max(initial=0)) + 1) * span
        # Small integers, for a large part of planning is to compare them.
        integer = np.min_scalar_type(-size - 1)
        start = family * span
        place, low, high = ((start + x).astype(integer) for x in (number, low, high))
        return cls(place, low, high, span, size)
