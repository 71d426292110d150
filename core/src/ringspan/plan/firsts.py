"""Which work is the first to touch its rows, and may write where later work must merge.

Within one part of a pattern no query row of a head occurs twice, and in a part made of sets no
key row does; so a head that only one part has touched has been touched once.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from ringspan.contracts.work import Ragged, Tiles, Work
from ringspan.plan.tiling import Joined

__all__ = ["Firsts", "mark_first"]


@dataclass(frozen=True, slots=True)
class Firsts:
    """What `mark_first` found out about all work together."""

    one_piece: bool
    key_one_piece: bool
    forward_covered: bool
    backward_covered: bool
    key_covered: bool


@dataclass
class _Touches:
    """Which parts have touched each head, and how many rows were first written."""

    heads: int
    rows: int
    parts: defaultdict[int, set[Hashable]] = field(default_factory=lambda: defaultdict(set))
    written: int = 0

    def add(self, heads: Sequence[int], parts: Sequence[Hashable], rows: int) -> bool:
        """Whether work on so many rows of each head is the first on all of them."""
        first = True
        for head, part in zip(heads, parts, strict=True):
            first = first and self.parts[head] <= {part}
            self.parts[head].add(part)
        self.written += rows * len(heads) if first else 0
        return first

    def add_often(self, heads: Sequence[int]) -> None:
        """Work that may touch a row several times."""
        for head in heads:
            self.parts[head] |= {object(), object()}

    @property
    def one_piece(self) -> bool:
        return all(len(parts) <= 1 for parts in self.parts.values())

    @property
    def covered(self) -> bool:
        return self.written == self.heads * self.rows


def mark_first(
    steps: Sequence[Sequence[Joined]],
    *,
    local: int,
    heads: int,
    rows: int,
    kv_heads: int,
    key_rows: int,
) -> tuple[list[tuple[Work, ...]], Firsts]:
    """Marks work that no earlier work overlaps, which may write instead of merge.

    The first `local` steps are those with the rank's own keys: computed first in the forward pass
    and last in the backward pass.
    Gradients of keys are written only where nothing arrives from other ranks.
    """
    forward, backward = _Touches(heads, rows), _Touches(heads, rows)
    key = _Touches(kv_heads, key_rows)
    alone = len(steps) == local
    order = (*range(local, len(steps)), *range(local))
    backward_first = {
        id(joined): _touch_queries(backward, joined, step)
        for step in order
        for joined in steps[step]
    }
    marked = [
        tuple(
            dataclasses.replace(
                joined.work,
                forward_first=_touch_queries(forward, joined, step),
                backward_first=backward_first[id(joined)],
                key_first=alone and _touch_keys(key, joined),
            )
            for joined in joins
        )
        for step, joins in enumerate(steps)
    ]
    return marked, Firsts(
        one_piece=forward.one_piece,
        key_one_piece=alone and key.one_piece,
        forward_covered=forward.covered,
        backward_covered=backward.covered,
        key_covered=alone and key.covered,
    )


def _touch_queries(touches: _Touches, joined: Joined, step: int) -> bool:
    work = joined.work
    heads = [head + member for head in work.query_heads for member in range(work.group)]
    parts = [(step, part) for part in joined.parts for _ in range(work.group)]
    return touches.add(heads, parts, _rows(work, "query"))


def _touch_keys(touches: _Touches, joined: Joined) -> bool:
    work = joined.work
    if isinstance(work, Tiles) and work.keys_overlap:
        touches.add_often(work.key_heads)
        return False
    # Query heads that share a key/value head but not a launch touch its rows twice.
    apart = [head if work.group == 1 else -1 for head in work.query_heads]
    parts = list(zip(joined.parts, apart, strict=True))
    return touches.add(work.key_heads, parts, _rows(work, "key"))


def _rows(work: Work, side: str) -> int:
    """Rows of each head."""
    length = getattr(work, f"{side}_length")
    return int(np.sum(length)) if isinstance(work, Ragged) else work.count * length
