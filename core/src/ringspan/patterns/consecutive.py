"""Consecutive segments of several lengths, each with a dilation rate of its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Cliques, Domain, Part, Pattern, Runs
from ringspan.patterns.along import Along, taken
from ringspan.patterns.branches import checked_branches, kept_counts
from ringspan.patterns.integers import LARGEST

if TYPE_CHECKING:
    import numpy.typing as npt

    Positions = npt.NDArray[np.int64]

__all__ = ["Consecutive"]


@dataclass(frozen=True)
class Consecutive(Pattern):
    """Segments one after the other, thinned at different rates; every token is covered.

    The sequence is cut into consecutive segments of `segment_lengths` tokens, repeated to the end;
    the last may be short. In a segment of rate `r`, tokens see each other where `i = j (mod r)`:
    all residue classes take part, for every head. The cuts restart at each document.

    Args:
        segment_lengths: tokens per segment, in the order in which they follow each other.
        dilation_rates: one per segment length, each at least 1. At a rate above the segment
            length some offsets keep nothing.
        along: name of an ordering or `Along`: segments and classes are taken along that curve.
            Causality still compares positions.

    Raises:
        InvalidArgument: lengths and rates that do not fit, or lengths of more than 2**53 tokens
            in total; names the one.

    Example:
        >>> import torch, ringspan as rs
        >>> q = k = v = torch.randn(1, 1000, 4, 16)
        >>> rs.attention(q, k, v, pattern=rs.Consecutive((64, 256), (1, 4)), causal=True).shape
        torch.Size([1, 1000, 4, 16])
    """

    documents_at_once: ClassVar[bool] = True

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]
    along: Along | str | None = None

    def __post_init__(self) -> None:
        lengths, rates = checked_branches(self.segment_lengths, self.dilation_rates)
        if sum(lengths) > LARGEST:
            raise InvalidArgument(
                "segment_lengths", expected="at most 2**53 in total", got=repr(lengths)
            )
        object.__setattr__(self, "segment_lengths", lengths)
        object.__setattr__(self, "dilation_rates", rates)
        object.__setattr__(self, "along", Along.of(self.along))
        super().__post_init__()

    def parts(self, domain: Domain) -> Iterable[Part]:
        """Per rate, the residue classes of its segments."""
        heads = tuple(range(domain.heads))
        segments = list(self._segments(domain))
        tokens = None
        if along := Along.of(self.along):
            starts, lengths = (np.concatenate(each) for each in zip(*segments, strict=True))
            tokens = along.tokens_in(domain, starts, lengths)
        for rate in sorted(set(self.dilation_rates)):
            alike = [
                each for each, r in zip(segments, self.dilation_rates, strict=True) if r == rate
            ]
            starts, lengths = (np.concatenate(each) for each in zip(*alike, strict=True))
            yield Cliques(heads, taken(_classes(starts, lengths, rate), tokens))

    def _segments(self, domain: Domain) -> Iterator[tuple[Positions, Positions]]:
        """For each segment length, its segments in all documents: their starts and lengths."""
        period, offset = sum(self.segment_lengths), 0
        for length in self.segment_lengths:
            counts = kept_counts(domain.lengths, period, offset)
            number = Runs(np.zeros_like(counts), counts).listed().rows
            starts = np.repeat(domain.starts, counts) + offset + number * period
            ends = np.repeat(domain.starts + domain.lengths, counts)
            yield starts, np.minimum(ends - starts, length)
            offset += length


def _classes(starts: Positions, lengths: Positions, rate: int) -> Runs:
    """Every residue class of every segment."""
    # A larger rate parts a segment's tokens no further.
    rate = min(rate, int(lengths.max(initial=1)))
    offset = np.arange(rate)
    counts = kept_counts(lengths[:, None], rate, offset).ravel()
    first = (starts[:, None] + offset).ravel()
    return Runs(first[counts > 0], counts[counts > 0], rate)
