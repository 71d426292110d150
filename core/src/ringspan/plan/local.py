"""Sets that are runs of rows, on a rank that holds everything in order: no list of their rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.masks import MaskCase
from ringspan.contracts.pattern import Cliques, Domain, Runs
from ringspan.contracts.work import Ragged, equal_groups
from ringspan.plan.lines import Lines
from ringspan.plan.tiling import Joined, Unit, grouped_heads

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["local_work"]

_FEW_LENGTHS = 8
"""With more lengths than these, sets become one ragged piece of work instead of one per length."""


def local_work(part: Cliques, number: int, domain: Domain) -> Iterator[Unit | Joined]:
    """The work of a part whose sets are runs: units yet to join, or ragged work."""
    assert isinstance(part.sets, Runs)
    some = part.sets.length > 0
    start, length, step = part.sets.start[some], part.sets.length[some], part.sets.step
    mask = MaskCase.CAUSAL if domain.causal else MaskCase.FULL
    groups = list(equal_groups(length))
    if len(groups) > _FEW_LENGTHS:
        yield from _ragged(part, number, domain, start, length, mask)
        return
    group = domain.heads // domain.kv_heads
    for tiles in groups:
        lines = Lines(start[tiles], step, int(length[tiles[0]]))
        for head, size, apart in grouped_heads(part.heads, group):
            yield Unit(
                query_head=head,
                group=size,
                query=lines,
                key_head=head // group,
                key=lines,
                mask=mask,
                part=number,
                apart=apart,
            )


def _ragged(
    part: Cliques, number: int, domain: Domain, start: Ints, length: Ints, mask: MaskCase
) -> Iterator[Joined]:
    group = domain.heads // domain.kv_heads
    for heads, size in _evenly_spaced(list(grouped_heads(part.heads, group))):
        work = Ragged(
            query_start=start,
            query_length=length,
            key_start=start,
            key_length=length,
            step=part.sets.step if isinstance(part.sets, Runs) else 1,
            query_heads=heads,
            key_heads=tuple(head // group for head in heads),
            group=size,
            mask=mask,
        )
        yield Joined(work, (number,) * len(heads))


def _evenly_spaced(heads: list[tuple[int, int, int]]) -> Iterator[tuple[tuple[int, ...], int]]:
    """Head groups of one size and number apart, as runs of evenly spaced heads."""
    for size, apart in sorted({(size, apart) for _, size, apart in heads}):
        left = [head for head, *kind in heads if kind == [size, apart]]
        while left:
            gap = left[1] - left[0] if len(left) > 1 else 1
            run = [head for index, head in enumerate(left) if head == left[0] + index * gap]
            yield tuple(run), size
            left = left[len(run) :]
