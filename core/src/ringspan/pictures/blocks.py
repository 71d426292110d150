"""Which blocks of stored tokens see which, under several orderings side by side."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Pattern
from ringspan.contracts.tokens import Tokens
from ringspan.pictures.sheet import check_drawable, check_orderings, named, named_tokens, new_figure
from ringspan.plan.activity import Seen
from ringspan.plan.best import layouts_serving
from ringspan.plan.orders import order

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]
    Floats = npt.NDArray[np.float64]

__all__ = ["ActiveBlocks", "active_blocks", "blocks_picture"]

_PIXELS = 256
"""Of one panel, at most."""
_LETTERS = 46
"""Of a title's line, beside other panels."""
_ACROSS = 3
"""Panels beside each other, at most; four make a square."""
_MOST_TOKENS = 2**21
_FIRST = "row-major"


@dataclass(frozen=True, eq=False)
class ActiveBlocks:
    """The active pairs of blocks under one ordering."""

    ordering: str
    count: int
    """Active pairs."""
    blocks: int
    shares: Floats
    """`[pixels, pixels]`, of the pairs in each pixel the share that is active."""
    alike: tuple[str, ...] = ()
    """Other orderings that store these tokens the same way."""


def active_blocks(
    pattern: Pattern,
    tokens: Tokens,
    *,
    block_size: int = 64,
    orderings: Sequence[str] | None = None,
    causal: bool = False,
    heads: int = 1,
) -> list[ActiveBlocks]:
    """The active pairs of blocks of `block_size` consecutive places, for each ordering.

    A pair is active where a query of the one sees a key of the other, for any head.

    Args:
        pattern: what attends to what, in positions.
        tokens: what the tokens are.
        block_size: tokens of a block; the last may have fewer.
        orderings: names, in the order of the result. None: all that are installed and serve the
            tokens, from row-major to the one with the fewest; equal ones together.
        causal: whether a token sees earlier ones only.
        heads: query heads.

    Raises:
        InvalidArgument: there are no tokens, more than 2,097,152, or too many blocks; an ordering
            is not there or does not serve the tokens; or the pattern does not fit them.
    """
    check_drawable(tokens, _MOST_TOKENS)
    if block_size < 1:
        raise InvalidArgument("block_size", expected="an integer >= 1", got=str(block_size))
    if heads < 1:
        raise InvalidArgument("heads", expected="an integer >= 1", got=str(heads))
    if orderings is None:
        orders = {name: layout.order for name, layout in layouts_serving(tokens).items()}
        groups = list(_alike(orders))
    else:
        check_orderings(orderings)
        orders = {name: order(name, tokens) for name in orderings}
        groups = [(name,) for name in orders]
    seen = Seen.of(pattern, tokens, heads=heads, causal=causal)
    found = [_counted(seen, group, orders[group[0]], block_size) for group in groups]
    if orderings is None:
        found.sort(key=lambda each: (each.ordering != _FIRST, -each.count))
    return found


def _alike(orders: dict[str, Ints]) -> Iterator[tuple[str, ...]]:
    """Names of equal orderings together; `row-major` is named before others."""
    groups: dict[bytes, list[str]] = {}
    for name in sorted(orders, key=lambda name: name != _FIRST):
        groups.setdefault(orders[name].tobytes(), []).append(name)
    yield from map(tuple, groups.values())


def _counted(seen: Seen, group: tuple[str, ...], order: Ints, block_size: int) -> ActiveBlocks:
    blocks = -(-seen.N // block_size)
    numbers = np.empty(seen.N, np.int64)
    numbers[order] = np.arange(seen.N) // block_size
    table = seen.activity(numbers, blocks)
    return ActiveBlocks(
        group[0], int(np.count_nonzero(table)), blocks, _shares(table), tuple(group[1:])
    )


def _shares(table: Bools) -> Floats:
    """The table in at most `_PIXELS` pixels a side, each as the share of it that is True."""
    pixels = min(len(table), _PIXELS)
    starts = -(-np.arange(pixels) * len(table) // pixels)
    rows = np.add.reduceat(table, starts, axis=0, dtype=np.int64)
    counts = np.add.reduceat(rows, starts, axis=1)
    sizes = np.diff(starts, append=len(table))
    shares: Floats = counts / (sizes[:, None] * sizes)
    return shares


def blocks_picture(
    pattern: Pattern,
    tokens: Tokens,
    *,
    block_size: int = 64,
    orderings: Sequence[str] | None = None,
    causal: bool = False,
    heads: int = 1,
    title: str = "",
) -> Figure:
    """`active_blocks` side by side: blocks of queries down, blocks of keys across.

    Each is named with its count, and with how many times that of the first it is.
    """
    found = active_blocks(
        pattern,
        tokens,
        block_size=block_size,
        orderings=orderings,
        causal=causal,
        heads=heads,
    )
    across = 2 if len(found) == 4 else min(len(found), _ACROSS)
    down = -(-len(found) // across)
    figure = new_figure(max(3.1 * across, 4), 3.35 * down + 0.75)
    panels = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    for panel, one in zip(panels, found, strict=False):
        _draw(panel, one, found[0])
    for panel in panels[len(found) :]:
        panel.set_axis_off()
    for number, panel in enumerate(panels[: len(found)]):
        if number + across >= len(found):
            panel.set_xlabel("block of keys", fontsize=8)
            panel.tick_params(labelbottom=True)
        if number % across == 0:
            panel.set_ylabel("block of queries", fontsize=8)
    what = (
        f"{named(pattern)}{', causal' if causal else ''}\n"
        f"{named_tokens(tokens)}, blocks of {block_size} tokens"
    )
    figure.suptitle(title or what, fontsize=10)
    return figure


def _draw(panel: Axes, one: ActiveBlocks, first: ActiveBlocks) -> None:
    panel.imshow(
        np.ma.masked_equal(one.shares, 0),
        cmap="Blues",
        vmin=-0.4,
        vmax=1.0,
        extent=(0, one.blocks, one.blocks, 0),
        interpolation="nearest",
        # A fixed aspect is unknown to the layout, which would put titles over other panels.
        aspect="auto",
    )
    said = f"{one.count:,} active pairs"
    if one is first:
        said += f" of {one.blocks**2:,}"
    elif first.count:
        said += f", {one.count / first.count:.3f} of {first.ordering}"
    name = one.ordering if not one.alike else f"{one.ordering} (also {', '.join(one.alike)})"
    panel.set_title(f"{textwrap.fill(name, _LETTERS)}\n{said}", fontsize=8.5)
    panel.tick_params(labelsize=7)
