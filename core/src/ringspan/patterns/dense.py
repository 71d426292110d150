"""Every token sees every token, or every token in a window around it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Cliques, Domain, Listed, Part, Pattern, Runs, Windows
from ringspan.patterns.along import Along
from ringspan.patterns.integers import checked_integer

if TYPE_CHECKING:
    import numpy.typing as npt

    Positions = npt.NDArray[np.int64]

__all__ = ["Dense"]


@dataclass(frozen=True)
class Dense(Pattern):
    """Ordinary attention: `m(i, j) = 1`, within the window if there is one.

    Args:
        window: `(left, right)`: query `i` sees keys `i - left <= j <= i + right`. None for a side:
            unbounded there. Windows stop at the borders of a document.
        along: name of an ordering or `Along`: the window is taken along that curve, in places
            instead of positions. Causality still compares positions.

    Raises:
        InvalidArgument: a window that is not two integers >= 0 or None, or `along` without one.

    Example:
        >>> import torch, ringspan as rs
        >>> q = k = v = torch.randn(1, 100, 4, 16)
        >>> rs.attention(q, k, v, pattern=rs.Dense(window=(31, 0)), causal=True).shape
        torch.Size([1, 100, 4, 16])
    """

    documents_at_once: ClassVar[bool] = True

    window: tuple[int | None, int | None] | None = None
    along: Along | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "window", _checked_window(self.window))
        object.__setattr__(self, "along", Along.of(self.along))
        if self.along is not None and self.window is None:
            raise InvalidArgument(
                "along",
                expected="None without a window: all tokens see each other in any order",
                got=repr(self.along),
                remedy="Give window=(left, right), or leave along out",
            )
        super().__post_init__()

    def parts(self, domain: Domain) -> Iterable[Part]:
        """One set per document: all its tokens, in order of position or place."""
        heads, lengths = tuple(range(domain.heads)), domain.lengths
        longest = int(lengths.max(initial=0))
        window = self.window or (None, None)
        left, right = (longest if side is None else min(side, longest) for side in window)
        everyone = Runs(domain.starts[lengths > 0], lengths[lengths > 0])
        if min(left, right) >= longest - 1:
            yield Cliques(heads, everyone)
        else:
            sets = self._along_curve(domain, everyone, longest)
            yield Windows(heads, sets, *_reach(everyone.length, left, right))

    def _along_curve(self, domain: Domain, places: Runs, longest: int) -> Runs | Listed:
        along = Along.of(self.along)
        if along is None:
            return places
        return Listed.of(along.tokens_by_place(domain, longest), places.length)


def _reach(lengths: Positions, left: int, right: int) -> tuple[Positions, Positions]:
    """For each token of each set, the first number that it sees and the one after the last."""
    number = Runs(np.zeros_like(lengths), lengths).listed().rows
    return np.maximum(number - left, 0), np.minimum(number + right + 1, np.repeat(lengths, lengths))


def _checked_window(window: object) -> tuple[int | None, int | None] | None:
    if window is None:
        return None
    if not isinstance(window, (tuple, list)) or len(window) != 2:
        raise InvalidArgument(
            "window",
            expected="(left, right), each an integer >= 0 or None for unbounded; or None",
            got=repr(window),
            remedy="window=(w, w) reaches both ways, window=(w, 0) back only",
        )
    left, right = (
        None if side is None else checked_integer(f"window[{at}]", side, least=0)
        for at, side in enumerate(window)
    )
    return left, right
