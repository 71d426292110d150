"""LongNet's dilated attention: segments of several lengths, thinned by several rates."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ringspan.contracts.pattern import Cliques, Domain, Part, Pattern
from ringspan.patterns.along import Along, taken
from ringspan.patterns.branches import checked_branches, thinned
from ringspan.patterns.geometric import geometric_branches, within_budget
from ringspan.patterns.head_offsets import (
    HeadOffsets,
    check_heads,
    checked_head_offsets,
    heads_by_offset,
)
from ringspan.patterns.integers import checked_integer

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from ringspan.patterns.torchscale import TorchscaleDilated

    Positions = npt.NDArray[np.int64]

__all__ = ["Dilated"]


@dataclass(frozen=True)
class Dilated(Pattern):
    """Dilated attention (LongNet, arXiv 2307.02486).

    Branch `c` cuts the sequence into segments of `segment_lengths[c]` tokens and keeps every
    `dilation_rates[c]`-th of each, starting at an offset that differs between heads.
    `m_h(i, j)` is the number of branches in which `i` and `j` share a segment and are both
    kept. Any length works: a short last segment and rates that do not divide are ordinary.

    Args:
        segment_lengths: tokens per segment, one per branch, each at least 1.
        dilation_rates: one per branch, each at least 1. At a rate above the segment
            length some offsets keep nothing.
        head_offsets: the offset `o` that a head keeps at rate `r`. `"modulo"`: key/value head `h`
            keeps `h mod r` (the paper's rule). `"query"`: query head `h` keeps `h mod r`; covers
            more where key/value heads are fewer than `r`, and is warned about where they are not.
            `"blocked"`: key/value head `h` keeps `h // ceil(kv_heads / r)` (torchscale's rule). Or
            integers, one per query head, for every branch, or one tuple of them per branch: taken
            as they are, so that a head with `o >= r` takes no part in that branch.
        along: name of an ordering or `Along`: segments and dilations are taken along that
            curve. Causality still compares positions.

    Raises:
        InvalidArgument: an argument that does not fit, or integers for another number of heads.

    Example:
        >>> import torch, ringspan as rs
        >>> q = k = v = torch.randn(1, 1000, 4, 16)
        >>> rs.attention(q, k, v, pattern=rs.Dilated((64, 256), (1, 4)), causal=True).shape
        torch.Size([1, 1000, 4, 16])
    """

    documents_at_once: ClassVar[bool] = True

    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]
    head_offsets: str | tuple[int, ...] | tuple[tuple[int, ...], ...] = "modulo"
    along: Along | str | None = None

    def __post_init__(self) -> None:
        lengths, rates = self._checked_branches()
        object.__setattr__(self, "segment_lengths", lengths)
        object.__setattr__(self, "dilation_rates", rates)
        offsets = checked_head_offsets(self.head_offsets, len(rates))
        object.__setattr__(self, "head_offsets", offsets)
        object.__setattr__(self, "along", Along.of(self.along))
        super().__post_init__()

    def _checked_branches(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return checked_branches(self.segment_lengths, self.dilation_rates)

    @staticmethod
    def torchscale(
        segment_lengths: tuple[int, ...], dilation_rates: tuple[int, ...]
    ) -> TorchscaleDilated:
        """What torchscale's `DilatedAttention` computes, for weights published with it.

        The same sets of tokens, and the zeros with which torchscale fills up segments: unless
        causal, they take part as keys of score 0 and value 0. Segments longer than a document
        are as long as it, and a rate may exceed its segment length.

        Gradients are the exact derivative: torchscale's detached weights of the branches are not
        reproduced. Where a rate does not divide the length of several segments, torchscale moves
        the output of the later ones to other positions; this does not, and warns. Key padding is
        refused, because lengths are those of real tokens: pack rows as `Documents`.

        Source: `dilated_attention.py` of github.com/microsoft/torchscale.

        Example:
            >>> pattern = Dilated.torchscale((1024, 5792, 32768), (1, 2, 4))
            >>> pattern.head_offsets
            'blocked'
        """
        # Here, for that module stands on this one.
        from ringspan.patterns.torchscale import TorchscaleDilated

        return TorchscaleDilated(segment_lengths, dilation_rates)

    @staticmethod
    def geometric(
        max_length: int,
        base: int = 2048,
        growth: int = 2,
        flops: float | None = None,
        *,
        heads: int | None = None,
        head_dim: int | None = None,
    ) -> Dilated:
        """Segments of `base`, `base * growth`, ... tokens, up to one that spans `max_length`.

        Rates are 1, `growth`, `growth ** 2`, ..., so that a token sees about `base` others in every
        branch in which it is kept. `adapted` fits the pattern to shorter sequences.

        Args:
            max_length: the longest sequence; the last branch sees from end to end of it.
            base: tokens of the shortest segment, at least `growth`.
            growth: from each branch to the next, at least 2.
            flops: a budget for one forward pass over one sequence of `max_length` tokens, not
                causal: `4 * head_dim` operations for each pair of tokens in each branch and head.
                Takes the largest of `base`, `base // growth`, `base // growth ** 2`, ... that stays
                within it; with `base=max_length` dense attention is the first.
            heads: number of heads, required with `flops`.
            head_dim: required with `flops`.

        Raises:
            InvalidArgument: no base is small enough for the budget, or an argument does not fit.

        Example:
            >>> Dilated.geometric(8192).segment_lengths
            (2048, 4096, 8192)
            >>> Dilated.geometric(8192, flops=2e10, heads=8, head_dim=64).segment_lengths
            (512, 1024, 2048, 4096, 8192)
        """
        if flops is None:
            return Dilated(*geometric_branches(max_length, base, growth))
        budget = within_budget(flops, max_length, base, growth, heads=heads, head_dim=head_dim)
        return Dilated(*budget)

    def adapted(self, N: int) -> Dilated:
        """This pattern for sequences of `N` tokens: no branch reaches further than it has to.

        Of the branches whose segments span all `N` tokens only the one with the shortest remains,
        with segments of `N` tokens. Others see the same tokens more sparsely, so results differ
        from those of the whole pattern. A pattern whose segments are all shorter stays as it is.

        Example:
            >>> Dilated.geometric(1_000_000).adapted(5000) == Dilated.geometric(5000)
            True
        """
        N = checked_integer("N", N)
        spanning = [c for c, length in enumerate(self.segment_lengths) if length >= N]
        shortest = min(spanning, key=self.segment_lengths.__getitem__, default=None)
        branches = range(len(self.segment_lengths))
        kept = [c for c in branches if c == shortest or c not in spanning]
        # Never below the rate: longer than N tokens is as good as N.
        lengths = (max(min(self.segment_lengths[c], N), self.dilation_rates[c]) for c in kept)
        offsets = self._head_offsets
        return dataclasses.replace(
            self,
            segment_lengths=tuple(lengths),
            dilation_rates=tuple(self.dilation_rates[c] for c in kept),
            head_offsets=offsets if isinstance(offsets, str) else tuple(offsets[c] for c in kept),
        )

    def check(self, domain: Domain) -> None:
        """Refuses offsets for another number of heads; warns of a rule that only costs."""
        check_heads(self._head_offsets, domain, self.dilation_rates)

    def parts(self, domain: Domain) -> Iterable[Part]:
        """Per branch and offset in use, the kept tokens of each segment."""
        for branch, tokens in enumerate(self._tokens_by_place(domain)):
            rate = self.dilation_rates[branch]
            segments = domain.segments(self.segment_lengths[branch])
            offsets = heads_by_offset(self._head_offsets, domain, branch, rate)
            for offset, heads in offsets.items():
                kept = thinned(*segments, rate, offset)
                if kept.size:
                    yield Cliques(heads, taken(kept, tokens))

    def _tokens_by_place(self, domain: Domain) -> Sequence[Positions | None]:
        along = Along.of(self.along)
        if along is None:
            return [None] * len(self.segment_lengths)
        return along.tokens_by_branch(domain, self.segment_lengths)

    @property
    def _head_offsets(self) -> HeadOffsets:
        return self.head_offsets  # type: ignore[return-value]  # as `__post_init__` left it
