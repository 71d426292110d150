"""The ordering along which a pattern is taken, as data, and where every token then stands."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ringspan.contracts.tokens import Coordinates, Sequence, Tokens

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

    Order = Callable[[str, Tokens], np.ndarray[Any, np.dtype[np.int64]]]

__all__ = ["Curve"]


@dataclass(frozen=True)
class Curve:
    """`ringspan.Along` as data, by the names of its arguments.

    Example:
        >>> backwards = lambda name, tokens: np.arange(tokens.N)[::-1].copy()
        >>> Curve("backwards", chunk=2).places(Sequence(5), backwards)
        tensor([1, 0, 3, 2, 4])
    """

    ordering: str
    fold: bool = False
    axes: tuple[int, ...] | None = None
    chunk: int | str | None = None

    def built(self, module: Any) -> Any:
        """The `Along` itself; `module` is `ringspan`."""
        return module.Along(**asdict(self))

    @property
    def by_segment(self) -> bool:
        """Whether it begins anew in each segment of the pattern."""
        return self.chunk == "segment" or (self.fold and self.chunk is None)

    def places(
        self, tokens: Tokens, order: Order, segment_lengths: Iterable[int] | None = None
    ) -> Int[Tensor, " N"]:
        """The place of each token of one document.

        Args:
            tokens: of the document.
            order: `order(name, tokens)` gives the token at each place along a named ordering.
            segment_lengths: of the pattern's segments, one after the other, at least as long as
                the document together; None: it has none, and the document is one.
        """
        place = torch.empty(tokens.N, dtype=torch.int64)
        start = 0
        for length in self._lengths(tokens.N, segment_lengths):
            some = slice(start, min(start + length, tokens.N))
            by_place = torch.tensor(order(self.ordering, self._alone(tokens, some)))
            place[some] = start + by_place.argsort()
            start += length
            if start >= tokens.N:
                break
        return place

    def _lengths(self, N: int, segment_lengths: Iterable[int] | None) -> Iterable[int]:
        if isinstance(self.chunk, int):
            return [self.chunk] * -(-N // self.chunk)
        return segment_lengths if self.by_segment and segment_lengths is not None else [N]

    def _alone(self, tokens: Tokens, some: slice) -> Tokens:
        """What the ordering sees of some of the tokens."""
        length = some.stop - some.start
        if self.fold:
            columns = next(c for c in range(1, length + 1) if c * c >= length)
            points = torch.tensor([divmod(i, columns) for i in range(length)])
        elif isinstance(tokens, Sequence):
            return Sequence(length)
        else:
            points = torch.tensor(tokens.coordinates)[some]
        return Coordinates(points if self.axes is None else points[:, list(self.axes)])
