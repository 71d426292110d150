"""How many blocks of a pattern are active under each ordering, and which has the fewest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ringspan.catalogue import catalogue
from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Pattern
from ringspan.plan.activity import Seen
from ringspan.plan.layout import Layout
from ringspan.plan.layout_checks import checked_block_size

if TYPE_CHECKING:
    from ringspan.contracts.documents import Documents
    from ringspan.contracts.tokens import Tokens

__all__ = ["Activity", "activity_of", "best_layout", "layouts_beside", "layouts_serving"]

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
    own: int | None = None
    """Of the blocks that the pattern chooses by itself, which run where a layout has no ordering
    or no block size; None: it chooses none."""

    @property
    def fewest(self) -> str:
        """The first ordering with the fewest; the order of positions, where none has fewer."""
        return min(self.counts, key=lambda name: (self.counts[name], name != _IN_ORDER))

    def __str__(self) -> str:
        by_count: dict[int, list[str]] = {}
        for name, count in sorted(self.counts.items(), key=lambda item: item[1]):
            by_count.setdefault(count, []).append(name)
        counts = "; ".join(f"{count} {', '.join(names)}" for count, names in by_count.items())
        own = "" if self.own is None else f"; {self.own} in the pattern's own blocks"
        return f"active pairs of blocks of {self.block_size}, of {self.blocks**2}: {counts}{own}"


def activity_of(seen: Seen, layouts: dict[str, Layout], block_size: int) -> Activity:
    """The active pairs of blocks of what is seen, under each of some layouts, by name."""
    counts, blocks = {}, 0
    for name, layout in layouts.items():
        numbers = layout.block_numbers(block_size)
        blocks = int(numbers.max(initial=-1)) + 1
        counts[name] = seen.active(numbers, blocks)
    return Activity(block_size, blocks, counts, seen.own)


def layouts_serving(
    tokens: int | Tokens,
    *,
    world_size: int = 1,
    sizes: tuple[int, ...] | None = None,
    documents: Documents | None = None,
    block_size: int | None = None,
    orderings: Sequence[str] | None = None,
) -> dict[str, Layout]:
    """A layout for the order of positions and for each ordering that serves the tokens, by name.

    Args:
        tokens: what the tokens are.
        world_size: number of shards.
        sizes: of the shards; None: even.
        documents: of packed sequences.
        block_size: of the layouts.
        orderings: names to choose from, none of which may refuse the tokens; None: all that are
            installed, without those that refuse them.
    """
    # Also where the plugin that offers an ordering of this name is absent.
    layouts = {_IN_ORDER: Layout(tokens, world_size, sizes=sizes)}
    tokens = layouts[_IN_ORDER].tokens
    for name in catalogue().names("ordering") if orderings is None else orderings:
        layout = Layout(
            tokens, world_size, name, sizes=sizes, documents=documents, block_size=block_size
        )
        if name != _IN_ORDER and (orderings is not None or _serves(layout)):
            layouts[name] = layout
    return layouts


def _serves(layout: Layout) -> bool:
    """Whether the tokens can be put in order."""
    try:
        return len(layout.order) == layout.N
    except InvalidArgument as refusal:
        # Curves refuse a plain sequence, and balanced orderings to be asked for each document; by
        # these names. Anything else is a mistake to show.
        if refusal.argument not in ("tokens", "ordering"):
            raise
        return False


def layouts_beside(layout: Layout, documents: Documents | None) -> dict[str, Layout]:
    """Those that `Layout.best` compares, and the layout itself where it is none of them."""
    layouts = layouts_serving(
        layout.tokens,
        world_size=layout.world_size,
        sizes=layout.sizes,
        documents=documents,
        block_size=layout.block_size,
    )
    like = layouts.get(layout.ordering or _IN_ORDER)
    if like is None or not np.array_equal(like.order, layout.order):
        layouts["as stored"] = layout
    return layouts


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
    if not isinstance(causal, bool):
        raise InvalidArgument("causal", expected="True or False", got=repr(causal))
    if orderings is not None and not (
        isinstance(orderings, tuple | list) and all(isinstance(name, str) for name in orderings)
    ):
        raise InvalidArgument(
            "orderings", expected="a tuple of names of orderings, or None", got=repr(orderings)
        )
    block_size = checked_block_size(block_size)
    layouts = layouts_serving(
        tokens,
        world_size=world_size,
        documents=documents,
        block_size=block_size,
        orderings=orderings,
    )
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
        kept = "no ordering has fewer than the order of positions"
        return f"{kept}, which is kept; {activity}"
    return f"{fewest / in_order:.2f} of the order of positions; {activity}"
