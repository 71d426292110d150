"""Along an ordering: where its curve begins anew, and how it sees the coordinates."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Listed, Runs
from ringspan.contracts.tokens import Coordinates, Sequence, Tokens

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.contracts.pattern import Domain

    Positions = npt.NDArray[np.int64]

__all__ = ["Along", "taken"]


@dataclass(frozen=True)
class Along:
    """The ordering along which a pattern is taken, or tokens are stored.

    Args:
        ordering: name of an ordering plugin's provider, such as `"hilbert"`.
        fold: for a plain sequence, fold each segment on an invented, nearly square grid and
            follow the curve through it. Off by default: within a segment it gains nothing, and
            over a whole text (`chunk=N`) neighbours part more often than they meet.
        axes: the axes of the coordinates in the order in which the ordering is to see them, such
            as `(1, 0)` for columns before rows; None: as they are. Layers that alternate between
            orders mix more (Point Transformer V3, arXiv 2312.10035).
        chunk: where the curve begins anew, besides at documents: after every so many positions;
            `"segment"`, in each segment of the pattern; None: nowhere (with `fold`, in each
            segment).

    Raises:
        InvalidArgument: an argument is wrong; when called, `axes` are not those of the tokens.

    Example:
        >>> Along("hilbert", axes=(1, 0), chunk=4096)
        Along(ordering='hilbert', fold=False, axes=(1, 0), chunk=4096)
    """

    ordering: str
    fold: bool = False
    axes: tuple[int, ...] | None = None
    chunk: int | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.ordering, str) or not isinstance(self.fold, bool):
            raise InvalidArgument(
                "along",
                expected="the name of an ordering, or Along(name, fold=True or False)",
                got=f"ordering={self.ordering!r}, fold={self.fold!r}",
            )
        object.__setattr__(self, "axes", _checked_axes(self.axes))
        if self.chunk not in (None, "segment"):
            object.__setattr__(self, "chunk", _checked_chunk(self.chunk))

    @staticmethod
    def of(along: Along | str | None) -> Along | None:
        """What a pattern's argument `along` stands for; None: positions.

        Raises:
            InvalidArgument: it is none of the three.
        """
        if isinstance(along, str):
            return Along(along)
        if along is None or isinstance(along, Along):
            return along
        raise InvalidArgument(
            "along", expected="the name of an ordering or Along(...)", got=repr(along)
        )

    @property
    def plain(self) -> bool:
        """Whether it is but the ordering's name."""
        return not self.fold and self.axes is None and self.chunk is None

    @property
    def by_segment(self) -> bool:
        """Whether the curve begins anew in each segment of a pattern."""
        return self.chunk == "segment" or (self.fold and self.chunk is None)

    def tokens_by_place(self, domain: Domain, segment_length: int) -> Positions:
        """The token at each place, int64 `[N]`, for segments of the given length.

        A document's tokens take the places that they have as positions; the curve restarts in
        each document, so that `domain.segments(segment_length)` cuts places.
        """
        return self.tokens_in(domain, *domain.segments(segment_length))

    def tokens_by_branch(self, domain: Domain, lengths: Iterable[int]) -> list[Positions]:
        """`tokens_by_place` for each of several segment lengths."""
        if self.by_segment:
            return [self.tokens_by_place(domain, length) for length in lengths]
        lengths = list(lengths)
        return [self.tokens_by_place(domain, lengths[0])] * len(lengths)

    def tokens_in(self, domain: Domain, starts: Positions, lengths: Positions) -> Positions:
        """The token at each place, int64 `[N]`, for segments with these starts and lengths."""
        if isinstance(self.chunk, int):
            starts, lengths = domain.segments(self.chunk)
        stretches = self._stretches(domain, starts, lengths)
        return _laid(
            domain.N,
            ((at, domain.order(self.ordering, self._turned(alone))) for at, alone in stretches),
        )

    def _stretches(
        self, domain: Domain, starts: Positions, lengths: Positions
    ) -> Iterator[tuple[Positions, Tokens]]:
        """Where stretches of equal tokens begin, and those tokens; a curve runs in each."""
        if self.fold and not isinstance(domain.tokens, Sequence):
            raise InvalidArgument(
                "along",
                expected="fold=True for a plain sequence only",
                got=f"fold=True with tokens={domain.tokens!r}",
                remedy="Drop fold=True: these tokens have coordinates of their own",
            )
        if not self.by_segment and self.chunk is None:
            for at, alone in domain.alone():
                yield at, alone.tokens
            return
        for length in np.unique(lengths).tolist():
            at = starts[lengths == length]
            if self.fold:
                yield at, _folded(length)
            elif isinstance(domain.tokens, Sequence):
                yield at, Sequence(length)
            else:
                yield from _alike(at, domain.tokens.coordinates, length)

    def _turned(self, tokens: Tokens) -> Tokens:
        """The tokens with their axes in the order asked for."""
        if self.axes is None:
            return tokens
        axes = 0 if isinstance(tokens, Sequence) else tokens.coordinates.shape[1]
        if len(self.axes) != axes:
            raise InvalidArgument(
                "axes",
                expected=f"None or {axes} axes, as {tokens!r} has"
                if axes
                else "None: a plain sequence has no axes",
                got=repr(self.axes),
            )
        return _with_axes(tokens, self.axes)


def _checked_axes(axes: object) -> tuple[int, ...] | None:
    if axes is None:
        return None
    if not isinstance(axes, tuple | list) or sorted(map(repr, axes)) not in (
        ["0", "1"],
        ["0", "1", "2"],
    ):
        raise InvalidArgument(
            "axes", expected="None, or each axis once: such as (1, 0) or (2, 0, 1)", got=repr(axes)
        )
    return tuple(axes)


def _checked_chunk(chunk: object) -> int:
    if not isinstance(chunk, int) or isinstance(chunk, bool) or not 1 <= chunk < 2**53:
        raise InvalidArgument(
            "chunk", expected="an integer in 1 .. 2**53 - 1, 'segment' or None", got=repr(chunk)
        )
    return int(chunk)


@lru_cache(maxsize=64)
def _with_axes(tokens: Tokens, axes: tuple[int, ...]) -> Tokens:
    points = tokens.coordinates
    assert points is not None
    return Coordinates(points[:, list(axes)])


def _alike(
    starts: Positions, points: Positions, length: int
) -> Iterator[tuple[Positions, Coordinates]]:
    """Stretches of so many tokens, together where their points differ by a shift only."""
    if not len(starts):
        return
    stretches = points[starts[:, None] + np.arange(length)]
    stretches -= stretches.min(axis=1, keepdims=True)
    shapes, which = np.unique(stretches.reshape(len(starts), -1), axis=0, return_inverse=True)
    for number, shape in enumerate(shapes):
        yield starts[which.ravel() == number], Coordinates(shape.reshape(length, -1))


def _laid(N: int, stretches: Iterable[tuple[Positions, Positions]]) -> Positions:
    """The order within a stretch of places, laid at every start of such a stretch."""
    tokens = np.empty(N, np.int64)
    for starts, order in stretches:
        tokens[starts[:, None] + np.arange(len(order))] = starts[:, None] + order
    return tokens


@lru_cache(maxsize=64)
def _folded(length: int) -> Coordinates:
    """A nearly square grid, filled row by row; the last row may be short."""
    columns = math.isqrt(length - 1) + 1
    return Coordinates(np.stack(np.divmod(np.arange(length), columns), axis=-1))


def taken(places: Runs, tokens: Positions | None) -> Runs | Listed:
    """Sets of places as sets of tokens, each in order of position; None: places are positions."""
    if tokens is None:
        return places
    listed = places.listed()
    return Listed(tokens[listed.rows], listed.bounds).ascending()
