"""Dilated attention as torchscale computes it, for weights that were trained with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Domain, Runs
from ringspan.patterns.branches import checked_branches, kept_counts
from ringspan.patterns.dilated import Dilated
from ringspan.patterns.head_offsets import heads_by_offset
from ringspan.patterns.warn import warn

if TYPE_CHECKING:
    import numpy.typing as npt

    Positions = npt.NDArray[np.int64]

__all__ = ["TorchscaleDilated"]


@dataclass(frozen=True)
class TorchscaleDilated(Dilated):
    """See `Dilated.torchscale`.

    With `w' = min(w, length of the document)`, every segment has `ceil(w' / r)` slots for each
    offset. Slots beyond the end of the segment or of the document hold zeros, which are keys like
    others unless a causal mask hides them.
    """

    takes_key_padding: ClassVar[bool] = False

    head_offsets: str = field(default="blocked", init=False)
    along: None = field(default=None, init=False)

    def _checked_branches(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return checked_branches(self.segment_lengths, self.dilation_rates)

    def adapted(self, N: int) -> Dilated:
        """Refused: weights that were trained with all branches need all of them."""
        raise InvalidArgument(
            "pattern",
            expected="a Dilated pattern that is not torchscale's",
            got=repr(self),
            remedy="Use it as it is: its segments are never longer than a document",
        )

    def check(self, domain: Domain) -> None:
        """Warns where torchscale itself computes something else."""
        longest = int(domain.lengths.max(initial=0))
        for length, rate in zip(self.segment_lengths, self.dilation_rates, strict=True):
            if length < longest and length % rate:
                warn(
                    f"torchscale moves the output of all but the first segment of {length} tokens "
                    f"to other positions, because the rate {rate} does not divide {length} and "
                    f"there are {longest} tokens; this computes the output where it belongs"
                )

    def null_keys(self, domain: Domain) -> Positions | None:
        """The zeros that each query sees, summed over the branches in which it takes part."""
        zeros = [] if domain.causal else list(self._zeros(domain))
        if not zeros:
            return None
        seen = np.zeros((domain.heads, domain.N), np.int64)
        for heads, rows, counts in zeros:
            for head in heads:
                seen[head, rows] += counts
        return seen

    def _zeros(self, domain: Domain) -> Iterator[tuple[tuple[int, ...], Positions, Positions]]:
        """For heads of one offset in one branch, the queries that see zeros and how many."""
        for branch, rate in enumerate(self.dilation_rates):
            length = self.segment_lengths[branch]
            starts, lengths = domain.segments(length)
            slots = -(-np.minimum(domain.lengths, length) // rate)
            slots = np.repeat(slots, -(-domain.lengths // length))
            offsets = heads_by_offset(self.head_offsets, domain, branch, rate)
            for offset, heads in offsets.items():
                kept = kept_counts(lengths, rate, offset)
                short = (kept > 0) & (kept < slots)
                if short.any():
                    rows = Runs(starts[short] + offset, kept[short], rate).listed().rows
                    yield heads, rows, np.repeat((slots - kept)[short], kept[short])
