"""LongNet's dilated attention: segments of several lengths, thinned by several rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ringspan.contracts.errors import InvalidArgument, NotYetSupported
from ringspan.contracts.pattern import Cliques, Domain, Listed, Part, Pattern, Runs
from ringspan.patterns.along import Along

if TYPE_CHECKING:
    import numpy.typing as npt

    Positions = npt.NDArray[np.int64]

__all__ = ["Dilated"]

_HEAD_OFFSETS = ("modulo", "blocked")
_LATER = ("query",)


@dataclass(frozen=True)
class Dilated(Pattern):
    """Dilated attention (LongNet, arXiv 2307.02486).

    Branch `c` cuts the sequence into segments of `segment_lengths[c]` tokens and keeps every
    `dilation_rates[c]`-th of each, starting at an offset that differs between heads.
    `m_h(i, j)` is the number of branches in which `i` and `j` share a segment and are both
    kept. Any length works: a short last segment and rates that do not divide are ordinary.

    Args:
        segment_lengths: tokens per segment, one per branch, each at least 1.
        dilation_rates: one per branch, `1 <= rate <= segment length`.
        head_offsets: `"modulo"`, key/value head `h` keeps offset `h mod r` (the paper's rule);
            `"blocked"`, offset `h // ceil(kv_heads / r)` (torchscale's rule).
        along: name of an ordering or `Along`: segments and dilations are taken along that
            curve. Causality still compares positions.

    Example:
        >>> import torch, ringspan as rs
        >>> q = k = v = torch.randn(1, 1000, 4, 16)
        >>> rs.attention(q, k, v, pattern=rs.Dilated((64, 256), (1, 4)), causal=True).shape
        torch.Size([1, 1000, 4, 16])
    """

    documents_at_once: ClassVar[bool] = True

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]
    head_offsets: str = "modulo"
    along: Along | str | None = None

    def __post_init__(self) -> None:
        lengths = _integers("segment_lengths", self.segment_lengths)
        rates = _integers("dilation_rates", self.dilation_rates)
        if len(lengths) != len(rates):
            raise InvalidArgument(
                "dilation_rates",
                expected=f"as many as segment_lengths ({len(lengths)})",
                got=f"{len(rates)}: {rates}",
            )
        for branch, (length, rate) in enumerate(zip(lengths, rates, strict=True)):
            if rate > length:
                raise InvalidArgument(
                    f"dilation_rates[{branch}]",
                    expected=f"at most the segment length {length}",
                    got=str(rate),
                    remedy="A larger rate would leave some heads no token in a segment",
                )
        object.__setattr__(self, "segment_lengths", lengths)
        object.__setattr__(self, "dilation_rates", rates)
        _check_head_offsets(self.head_offsets)
        if isinstance(self.along, str):
            object.__setattr__(self, "along", Along(self.along))
        elif self.along is not None and not isinstance(self.along, Along):
            raise InvalidArgument(
                "along", expected="the name of an ordering or Along(...)", got=repr(self.along)
            )
        super().__post_init__()

    def parts(self, domain: Domain) -> Iterable[Part]:
        """Per branch and offset in use, the kept tokens of each segment."""
        for length, rate in zip(self.segment_lengths, self.dilation_rates, strict=True):
            segments = domain.segments(length)
            tokens = None
            if isinstance(self.along, Along):
                tokens = self.along.tokens_by_place(domain, length)
            for offset, heads in self._heads_by_offset(domain, rate).items():
                kept = _kept(segments, rate, offset)
                yield Cliques(heads, kept if tokens is None else _taken(tokens, kept))

    def _heads_by_offset(self, domain: Domain, rate: int) -> dict[int, tuple[int, ...]]:
        block, group = -(-domain.kv_heads // rate), domain.heads // domain.kv_heads
        heads: dict[int, tuple[int, ...]] = {}
        for head in range(domain.heads):
            kv_head = head // group
            offset = kv_head // block if self.head_offsets == "blocked" else kv_head % rate
            heads[offset] = (*heads.get(offset, ()), head)
        return heads


def _kept(segments: tuple[Positions, Positions], rate: int, offset: int) -> Runs:
    """The places of each segment that one offset keeps; segments that it misses are left out."""
    starts, lengths = segments
    counts = (lengths - offset + rate - 1) // rate
    hit = counts > 0
    return Runs(starts[hit] + offset, counts[hit], rate)


def _taken(tokens: Positions, places: Runs) -> Listed:
    """The tokens at those places, each set in order of position."""
    listed = places.listed()
    return Listed(tokens[listed.rows], listed.bounds).ascending()


def _integers(name: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, (tuple, list)) or not values:
        raise InvalidArgument(
            name, expected="one or more integers, one per branch", got=repr(values)
        )
    for index, value in enumerate(values):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InvalidArgument(f"{name}[{index}]", expected="an integer >= 1", got=repr(value))
    # int(): an IntEnum is an integer, but its text is not.
    return tuple(int(value) for value in values)


def _check_head_offsets(head_offsets: object) -> None:
    if head_offsets in _HEAD_OFFSETS:
        return
    known = " or ".join(repr(name) for name in _HEAD_OFFSETS)
    if head_offsets in _LATER or isinstance(head_offsets, (tuple, list)):
        raise NotYetSupported(
            "head_offsets", expected=f"{known} in this version", got=repr(head_offsets)
        )
    raise InvalidArgument("head_offsets", expected=known, got=repr(head_offsets))
