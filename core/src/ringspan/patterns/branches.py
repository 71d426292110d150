"""What dilated patterns share: branches, that is segments of some length, thinned at some rate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Runs
from ringspan.patterns.integers import checked_integer

if TYPE_CHECKING:
    import numpy.typing as npt

    Positions = npt.NDArray[np.int64]

__all__ = ["checked_branches", "kept_counts", "thinned"]


def checked_branches(
    segment_lengths: object, dilation_rates: object
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Lengths and rates as tuples of equally many integers, each at least 1."""
    lengths = _integers("segment_lengths", segment_lengths)
    rates = _integers("dilation_rates", dilation_rates)
    if len(lengths) != len(rates):
        raise InvalidArgument(
            "dilation_rates",
            expected=f"as many as segment_lengths ({len(lengths)})",
            got=f"{len(rates)}: {rates}",
        )
    return lengths, rates


def _integers(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or not values:
        raise InvalidArgument(
            name, expected="one or more integers, one per branch", got=repr(values)
        )
    return tuple(checked_integer(f"{name}[{at}]", value) for at, value in enumerate(values))


def kept_counts(lengths: Positions, rate: int, offset: int | Positions) -> Positions:
    """How many tokens of segments of these lengths one offset keeps."""
    counts: Positions = np.maximum((lengths - offset + rate - 1) // rate, 0)
    return counts


def thinned(starts: Positions, lengths: Positions, rate: int, offset: int) -> Runs:
    """What one offset keeps of each segment; segments that it misses are left out."""
    counts = kept_counts(lengths, rate, offset)
    hit = counts > 0
    # A rate that keeps one token of each segment at most says nothing; as a step it could overflow.
    step = min(rate, int(lengths.max(initial=1)))
    return Runs(starts[hit] + offset, counts[hit], step)
