"""Groups of heads, each with one segment length and dilation rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Cliques, Domain, Part, Pattern
from ringspan.patterns.along import Along, taken
from ringspan.patterns.branches import checked_branches, thinned

__all__ = ["HeadGroups"]


@dataclass(frozen=True)
class HeadGroups(Pattern):
    """One branch of dilated attention per group of heads, none of them mixed.

    The key/value heads are split into as many groups as there are branches, the first ones larger
    by one where they do not divide. Number `n` of group `g` uses branch `g` alone: segments of
    `segment_lengths[g]` tokens, thinned at rate `r = dilation_rates[g]` from offset `n mod r`.
    Query heads follow the key/value head that they read.

    Args:
        segment_lengths: tokens per segment, one per group.
        dilation_rates: one per group, each at least 1. At a rate above the segment
            length some offsets keep nothing.
        along: name of an ordering or `Along`: segments and dilations are taken along that curve.
            Causality still compares positions.

    Raises:
        InvalidArgument: lengths and rates that do not fit, or fewer key/value heads than groups.

    Example:
        >>> import torch, ringspan as rs
        >>> q = k = v = torch.randn(1, 1000, 4, 16)
        >>> rs.attention(q, k, v, pattern=rs.HeadGroups((64, 256), (1, 2)), causal=True).shape
        torch.Size([1, 1000, 4, 16])
    """

    documents_at_once: ClassVar[bool] = True

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]
    along: Along | str | None = None

    def __post_init__(self) -> None:
        lengths, rates = checked_branches(self.segment_lengths, self.dilation_rates)
        object.__setattr__(self, "segment_lengths", lengths)
        object.__setattr__(self, "dilation_rates", rates)
        object.__setattr__(self, "along", Along.of(self.along))
        super().__post_init__()

    def check(self, domain: Domain) -> None:
        """Refuses branches that no head would use."""
        groups = len(self.segment_lengths)
        if domain.kv_heads < groups:
            raise InvalidArgument(
                "pattern",
                expected=f"at most {domain.kv_heads} groups, for there are {domain.kv_heads} "
                "key/value heads",
                got=f"{groups} segment lengths",
            )

    def parts(self, domain: Domain) -> Iterable[Part]:
        """Per group and offset in use, the kept tokens of each segment."""
        along = Along.of(self.along)
        for length, rate, kv_heads in self._groups(domain.kv_heads):
            tokens = along.tokens_by_place(domain, length) if along else None
            segments = domain.segments(length)
            for offset in range(min(rate, len(kv_heads))):
                kept = thinned(*segments, rate, offset)
                if kept.size:
                    heads = _readers(domain, kv_heads[offset::rate])
                    yield Cliques(heads, taken(kept, tokens))

    def _groups(self, kv_heads: int) -> Iterator[tuple[int, int, range]]:
        """Segment length, rate and key/value heads of each group."""
        size, larger = divmod(kv_heads, len(self.segment_lengths))
        branches = zip(self.segment_lengths, self.dilation_rates, strict=True)
        for g, (length, rate) in enumerate(branches):
            first, after = (at * size + min(at, larger) for at in (g, g + 1))
            yield length, rate, range(first, after)


def _readers(domain: Domain, kv_heads: range) -> tuple[int, ...]:
    """The query heads that read these key/value heads."""
    group = domain.heads // domain.kv_heads
    return tuple(head for head in range(domain.heads) if head // group in kv_heads)
