"""What the tokens are: a plain sequence, a grid, or points with coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.held import Held, integers

if TYPE_CHECKING:
    import numpy.typing as npt
    import torch
    from jaxtyping import Int
    from torch import Tensor

    from ringspan.contracts.documents import Documents

__all__ = [
    "Coordinates",
    "Grid",
    "Sequence",
    "Tokens",
    "axes_of",
    "shard_sizes",
    "tokens_from",
]


@dataclass(frozen=True, slots=True)
class Sequence:
    """`N` tokens in a row, with no geometry."""

    N: int

    def __post_init__(self) -> None:
        if not isinstance(self.N, int) or self.N < 0:
            raise InvalidArgument("N", expected="an integer >= 0", got=repr(self.N))

    @property
    def coordinates(self) -> None:
        """A plain sequence has none."""
        return None


class Grid:
    """Tokens on a full grid, numbered in row-major order.

    Args:
        shape: two or three sizes, `Grid(h, w)` or `Grid(t, h, w)`.

    Example:
        >>> Grid(2, 3).coordinates.tolist()
        [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
    """

    __slots__ = ("shape", "text")

    shape: tuple[int, ...]
    text: str
    """Names this grid where only text may go. Made here, because `torch.compile` turns sizes that
    change into symbols, which have no text."""

    def __init__(self, *shape: int) -> None:
        if len(shape) not in (2, 3) or not all(
            isinstance(size, int) and not isinstance(size, bool) and size >= 1 for size in shape
        ):
            raise InvalidArgument(
                "Grid", expected="two or three sizes, each an integer >= 1", got=repr(shape)
            )
        self.shape = shape
        self.text = f"('grid', {shape!r})"

    @property
    def N(self) -> int:  # noqa: N802 - the field's name for the number of tokens
        """Number of tokens."""
        return math.prod(self.shape)

    @property
    def coordinates(self) -> npt.NDArray[np.int64]:
        """`[N, axes]`, the grid index of each token."""
        return _grid_coordinates(self.shape)

    def __reduce__(self) -> tuple[Any, ...]:
        return (Grid, self.shape)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Grid) and self.shape == other.shape

    def __hash__(self) -> int:
        return hash((Grid, self.shape))

    def __repr__(self) -> str:
        return f"Grid{self.shape}"


@lru_cache(maxsize=16)
def _grid_coordinates(shape: tuple[int, ...]) -> npt.NDArray[np.int64]:
    coordinates = np.stack(np.unravel_index(np.arange(math.prod(shape)), shape), axis=-1)
    coordinates.flags.writeable = False
    return coordinates


class Coordinates(Held):
    """Tokens at integer points, two or three axes, gaps allowed, in any order.

    The points are copied to the host once, when this object is built.

    Args:
        points: integers `[N, 2]` or `[N, 3]`; a torch tensor, a numpy array or nested lists.

    Example:
        >>> Coordinates([[0, 0], [5, 1]]).N
        2
    """

    __slots__ = ()
    kind: ClassVar[str] = "coordinates"

    def __init__(self, points: Any) -> None:
        expected = "integers of shape [N, 2] or [N, 3]"
        array = integers("Coordinates", points, expected=expected)
        if array.ndim != 2 or array.shape[1] not in (2, 3):
            raise InvalidArgument(
                "Coordinates", expected=expected, got=f"{array.dtype} of shape {list(array.shape)}"
            )
        limits = np.iinfo(np.int32)
        if array.size and (array.min() < 0 or array.max() > limits.max):
            raise InvalidArgument(
                "Coordinates",
                expected=f"values in 0 .. {limits.max}",
                got=f"values in {array.min()} .. {array.max()}",
                remedy="Subtract the smallest value of each axis",
            )
        self._hold(array)

    @classmethod
    def from_mask(cls, mask: Any) -> Coordinates:
        """The cells of a mask that are True, row after row: the tiles of a slide with tissue.

        Args:
            mask: booleans `[height, width]` or `[depth, height, width]`; a tensor, an array or
                nested lists.

        Raises:
            InvalidArgument: it is no such mask, or leaves nothing.

        Example:
            >>> Coordinates.from_mask([[True, False], [True, True]]).coordinates.tolist()
            [[0, 0], [1, 0], [1, 1]]
        """
        expected = "booleans of shape [height, width] or [depth, height, width]"
        try:
            array = np.asarray(mask.detach().cpu() if hasattr(mask, "detach") else mask)
        except (ValueError, TypeError, NotImplementedError):
            raise InvalidArgument("mask", expected=expected, got=type(mask).__name__) from None
        if array.dtype != np.bool_ or array.ndim not in (2, 3):
            raise InvalidArgument(
                "mask", expected=expected, got=f"{array.dtype} of shape {list(array.shape)}"
            )
        if not array.any():
            raise InvalidArgument(
                "mask",
                expected="at least one True cell",
                got=f"False everywhere, of shape {list(array.shape)}",
                remedy="True marks the cells to keep: look at the threshold, or invert the mask",
            )
        return cls(np.argwhere(array))

    @classmethod
    def pack(cls, sets: Iterable[Any]) -> tuple[Coordinates, Documents]:
        """A batch of different sets of points as packed documents, one set after the other.

        The rows of q, k and v are then those of all sets, likewise one after the other, in one
        sequence: `attention(.., tokens=coordinates, documents=documents)` equals attention over
        each set alone.

        Args:
            sets: for each document its points, as for `Coordinates`, or `Coordinates`.

        Example:
            >>> points, documents = Coordinates.pack([[[0, 0], [0, 1]], [[7, 7]]])
            >>> points.N, documents.lengths.tolist()
            (3, [2, 1])
        """
        from ringspan.contracts.documents import Documents

        if not isinstance(sets, Iterable):
            raise InvalidArgument(
                "sets", expected="a list of sets of points", got=type(sets).__name__
            )
        points = [one if isinstance(one, Coordinates) else cls(one) for one in sets]
        axes = {one.coordinates.shape[1] for one in points}
        if len(axes) != 1:
            raise InvalidArgument(
                "sets",
                expected="at least one set of points, all with two or all with three axes",
                got=f"sets of {sorted(axes)} axes" if axes else "none",
            )
        together = cls(np.concatenate([one.coordinates for one in points]))
        return together, Documents.from_lengths([one.N for one in points])

    @property
    def coordinates(self) -> npt.NDArray[np.int64]:
        """`[N, axes]`, the point of each token."""
        return self.arrays[0]

    @property
    def N(self) -> int:  # noqa: N802 - the field's name for the number of tokens
        """Number of tokens."""
        return len(self.coordinates)

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy, also in another process, is an object of its own with a handle of its own.
        return (Coordinates, (self.coordinates,))

    def __repr__(self) -> str:
        return (
            f"Coordinates(N={self.N}, axes={self.coordinates.shape[1]}, digest={self.digest[:8]})"
        )


Tokens = Sequence | Grid | Coordinates


def tokens_from(literal: Any) -> Tokens | None:
    """The inverse of a `text`, after `ast.literal_eval`; None stands for a plain sequence."""
    if literal is None:
        return None
    kind, content = literal
    return Grid(*content) if kind == "grid" else Coordinates.find(content)


def axes_of(
    tokens: Tokens, *, ordering: str, device: torch.device | str = "cpu"
) -> tuple[Int[Tensor, " N"], ...]:
    """The coordinates of `tokens`, measured from the smallest: int64 `[N]` per axis.

    For orderings that follow the geometry; `ordering` is the name to refuse in.

    Raises:
        InvalidArgument: `tokens` is a plain `Sequence`, which has no coordinates.

    Example:
        >>> [axis.tolist() for axis in axes_of(Coordinates([[5, 7], [6, 7]]), ordering="mine")]
        [[0, 1], [0, 0]]
    """
    import torch

    if isinstance(tokens, Sequence):
        raise InvalidArgument(
            "tokens",
            expected=f"Grid or Coordinates, for the ordering {ordering!r} follows two or three "
            "dimensions",
            got=repr(tokens),
            remedy="Pass tokens=Grid(h, w), or fold the sequence on an invented grid with "
            f"along=Along({ordering!r}, fold=True)",
        )
    points = tokens.coordinates
    if len(points) > 0:
        points = points - points.min(axis=0)
    return tuple(torch.tensor(points[:, axis], device=device) for axis in range(points.shape[1]))


def shard_sizes(N: int, shards: int, weights: tuple[float, ...] | None) -> tuple[int, ...]:
    """How many of `N` tokens each shard holds: even, or in proportion to `weights`.

    Sizes differ from exact proportion by less than one token and sum to `N`. Ties go to the
    lower shard.

    Example:
        >>> shard_sizes(10, 4, None)
        (3, 3, 2, 2)
        >>> shard_sizes(10, 2, (3.0, 1.0))
        (8, 2)
    """
    share = np.full(shards, 1.0) if weights is None else np.asarray(weights, dtype=np.float64)
    exact = share / share.sum() * N
    sizes = np.floor(exact).astype(np.int64)
    short = int(N - sizes.sum())
    sizes[np.argsort(sizes - exact, kind="stable")[:short]] += 1
    return tuple(int(size) for size in sizes)
