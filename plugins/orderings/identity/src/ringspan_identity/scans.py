"""The orderings that scan straight along the axes."""

from __future__ import annotations

from typing import ClassVar

import torch
from ringspan.contracts import (
    Availability,
    DeviceInfo,
    InvalidArgument,
    Ordering,
    Permutation,
    Tokens,
    axes_of,
)

from ringspan_identity.points import dense_rank, lexicographic

__all__ = ["Identity", "RowMajor", "Snake", "Tiles"]


class Scan(Ordering):
    """What all scans share: they run everywhere."""

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable everywhere: integer arithmetic and a sort."""
        return Availability.yes()


class Identity(Scan):
    """Every token at the place of its own number, whatever the tokens are.

    Example:
        >>> from ringspan.contracts import Sequence
        >>> Identity().places(Sequence(3)).tokens.tolist()
        [0, 1, 2]
    """

    name: ClassVar[str] = "identity"

    def places(
        self,
        tokens: Tokens,
        *,
        shards: int = 1,
        weights: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
    ) -> Permutation:
        """The identical permutation; shards and weights make no difference."""
        return Permutation.from_tokens(torch.arange(tokens.N, device=device))


class RowMajor(Scan):
    """Row after row, the last axis fastest: on a `Grid` the identity, on points a sort.

    Example:
        >>> from ringspan.contracts import Coordinates
        >>> RowMajor().places(Coordinates([[1, 0], [0, 5], [0, 2]])).tokens.tolist()
        [2, 1, 0]
    """

    name: ClassVar[str] = "row-major"

    def places(
        self,
        tokens: Tokens,
        *,
        shards: int = 1,
        weights: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
    ) -> Permutation:
        """The permutation of `tokens`; shards and weights make no difference.

        Raises:
            InvalidArgument: `tokens` is a plain `Sequence`.
        """
        axes = axes_of(tokens, ordering=self.name, device=device)
        return Permutation.from_tokens(lexicographic(axes))


class Snake(Scan):
    """Row after row, each in the opposite direction of the one before; so are planes.

    Consecutive places of a full `Grid` are always neighbours. Rows without any point do not
    count, so that gaps between rows do not spoil the alternation.

    Example:
        >>> from ringspan.contracts import Grid
        >>> Snake().places(Grid(2, 3)).tokens.tolist()
        [0, 1, 2, 5, 4, 3]
    """

    name: ClassVar[str] = "snake"

    def places(
        self,
        tokens: Tokens,
        *,
        shards: int = 1,
        weights: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
    ) -> Permutation:
        """The permutation of `tokens`; shards and weights make no difference.

        Raises:
            InvalidArgument: `tokens` is a plain `Sequence`.
        """
        rank = torch.zeros(tokens.N, dtype=torch.int64, device=device)
        for axis in axes_of(tokens, ordering=self.name, device=device):
            rank = dense_rank(rank, torch.where(rank % 2 == 0, axis, -axis))
        return Permutation.from_keys(rank)


class Tiles(Scan):
    """Square or cubic tiles in row-major order, row-major inside each.

    Tiles are measured from the smallest coordinate of each axis; those at the border of a
    grid that is not a multiple of `size` are cut.

    Args:
        size: side of a tile, an integer >= 1, in units of the coordinates.

    Raises:
        InvalidArgument: `size` is no integer >= 1.

    Example:
        >>> from ringspan.contracts import Grid
        >>> Tiles(size=2).places(Grid(2, 4)).tokens.tolist()
        [0, 1, 4, 5, 2, 3, 6, 7]
    """

    name: ClassVar[str] = "tiles"

    def __init__(self, size: int = 8) -> None:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise InvalidArgument("size", expected="an integer >= 1", got=repr(size))
        self.size = size

    def places(
        self,
        tokens: Tokens,
        *,
        shards: int = 1,
        weights: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
    ) -> Permutation:
        """The permutation of `tokens`; shards and weights make no difference.

        Raises:
            InvalidArgument: `tokens` is a plain `Sequence`.
        """
        axes = axes_of(tokens, ordering=self.name, device=device)
        tiles = [axis // self.size for axis in axes]
        return Permutation.from_tokens(lexicographic([*tiles, *axes]))
