"""How many blocks of a pattern are active under each ordering, and which has the fewest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ringspan.catalogue import catalogue
from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Pattern
from ringspan.plan.activity import Seen
from ringspan.plan.layout import Layout

if TYPE_CHECKING:
    from ringspan.contracts.documents import Documents
    from ringspan.contracts.tokens import Tokens

__all__ = ["Activity", "activity_of", "best_layout", "layouts_beside"]

_IN_ORDER = "identity"
"""Stands for the order of positions, also where the plugin of that name is absent."""


@dataclass(frozen=True, slots=True)
class Activity:
    """Active pairs of blocks under each ordering.

    A pair of blocks, each `block_size` consecutive places of a rank, is active where some query of
    the one sees some key of the other. `counts` is by the name of the ordering; `"identity"` is
    the order of positions.
    """

    block_size: int
    blocks: int
    """How many there are."""
    counts: dict[str, int]

    @property
    def fewest(self) -> str:
        """The first ordering with the fewest; the order of positions, where none has fewer."""
        return min(self.counts, key=lambda name: (self.counts[name], name != _IN_ORDER))

    def __str__(self) -> str:
        by_count: dict[int, list[str]] = {}
        for name, count in sorted(self.counts.items(), key=lambda item: item[1]):
            by_count.setdefault(count, []).append(name)
        counts = "; ".join(f"{count} {', '.join(names)}" for count, names in by_count.items())
        return f"active pairs of blocks of {self.block_size}, of {self.blocks**2}: {counts}"


def activity_of(seen: Seen, layouts: dict[str, Layout], block_size: int) -> Activity:
    """The active pairs of blocks of what is seen, under each of some layouts, by name."""
    counts, blocks = {}, 0
    for name, layout in layouts.items():
        numbers = layout.block_numbers(block_size)
        blocks = int(numbers.max(initial=-1)) + 1
        counts[name] = seen.active(numbers, blocks)
    return Activity(block_size, blocks, counts)


def _serving(
    tokens: int | Tokens,
    world_size: int,
    documents: Documents | None,
    block_size: int | None,
    orderings: Sequence[str] | None = None,
) -> dict[str, Layout]:
    """A layout for the order of positions and for each ordering that serves the tokens, by name."""
    in_order = Layout(tokens, world_size)
    return {
        _IN_ORDER: in_order,
        **{
            name: layout
            for name, layout in _candidates(in_order, documents, block_size, orderings)
            if name != _IN_ORDER
        },
    }


def layouts_beside(layout: Layout, documents: Documents | None) -> dict[str, Layout]:
    """Those that `Layout.best` compares, and the layout itself where it is none of them."""
    layouts = _serving(layout.tokens, layout.world_size, documents, layout.block_size)
    like = layouts.get(layout.ordering or _IN_ORDER)
    if like is None or like.sizes != layout.sizes or not np.array_equal(like.order, layout.order):
        layouts["as stored"] = layout
    return layouts


def _candidates(
    in_order: Layout,
    documents: Documents | None,
    block_size: int | None,
    orderings: Sequence[str] | None,
) -> Iterator[tuple[str, Layout]]:
    names = catalogue().names("ordering") if orderings is None else orderings
    for name in names:
        layout = Layout(
            in_order.tokens,
            in_order.world_size,
            name,
            documents=documents,
            block_size=block_size,
        )
        try:
            np.shape(layout.order)
        except InvalidArgument:
            # It does not serve such tokens. Asked for by name, it says so.
            if orderings is not None:
                raise
            continue
        yield name, layout


def best_layout(
    tokens: int | Tokens,
    pattern: Pattern,
    block_size: int,
    *,
    world_size: int,
    causal: bool,
    documents: Documents | None,
    orderings: Sequence[str] | None,
) -> Layout:
    """See `Layout.best`."""
    if not isinstance(pattern, Pattern):
        raise InvalidArgument("pattern", expected="a Pattern", got=repr(pattern))
    if not isinstance(block_size, int) or isinstance(block_size, bool) or block_size < 1:
        raise InvalidArgument("block_size", expected="an integer >= 1", got=repr(block_size))
    layouts = _serving(tokens, world_size, documents, block_size, orderings)
    seen = Seen.of(pattern, layouts[_IN_ORDER].tokens, causal=causal, documents=documents)
    activity = activity_of(seen, layouts, block_size)
    chosen = layouts[activity.fewest]
    return Layout(
        chosen.tokens,
        chosen.world_size,
        chosen.along,
        documents=chosen.documents,
        block_size=chosen.block_size,
        reason=_reason(activity),
    )


def _reason(activity: Activity) -> str:
    in_order, fewest = activity.counts[_IN_ORDER], activity.counts[activity.fewest]
    if activity.fewest == _IN_ORDER:
        return f"no ordering has fewer than the order of positions; {activity}"
    return f"{fewest / in_order:.2f} of the order of positions; {activity}"
