"""A pattern as a mask: which keys each query sees."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ringspan.contracts.pattern import Pattern
from ringspan.contracts.tokens import Tokens
from ringspan.pictures.sheet import check_drawable, check_head, named, new_figure
from ringspan.plan.activity import Seen

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    Ints = npt.NDArray[np.int64]
    Floats = npt.NDArray[np.float64]

__all__ = ["draw_values", "pairs_per_pixel", "pattern_picture"]

_PIXELS = 512
_MOST_TOKENS = 2**20
_FEW = 6
"""Different values that are told apart by a colour each."""
_WIDE = 30
"""How many times the least value the largest is, for a logarithmic scale."""


def pairs_per_pixel(
    pattern: Pattern, tokens: Tokens, *, kv_heads: int, head: int, causal: bool, pixels: int
) -> Ints:
    """How many query-key pairs of a head fall in each pixel, `[pixels, pixels]`, exactly.

    Row `a`, column `b` counts (with multiplicity) the pairs whose query lies in the `a`-th and
    whose key lies in the `b`-th of `pixels` equal stretches of the sequence.

    Example:
        >>> from ringspan import Dense
        >>> from ringspan.contracts.tokens import Sequence
        >>> pairs_per_pixel(
        ...     Dense(), Sequence(4), kv_heads=1, head=0, causal=True, pixels=2
        ... ).tolist()
        [[3, 0], [4, 3]]
    """
    seen = Seen.of(pattern, tokens, heads=kv_heads, causal=causal)
    return seen.pairs(_stretches(tokens, pixels), pixels, head)


def _stretches(tokens: Tokens, pixels: int) -> Ints:
    numbers: Ints = np.arange(tokens.N) * pixels // tokens.N
    return numbers


def pattern_picture(
    pattern: Pattern,
    tokens: Tokens,
    *,
    kv_heads: int = 1,
    head: int = 0,
    causal: bool = False,
    title: str = "",
) -> Figure:
    """A head's mask: queries down, keys across; darker where a larger share of pairs is seen.

    Raises:
        InvalidArgument: there are no tokens or more than 1,048,576, or no such head.
    """
    check_drawable(tokens, _MOST_TOKENS)
    check_head(head, kv_heads, "kv_heads")
    pixels = min(tokens.N, _PIXELS)
    counts = pairs_per_pixel(
        pattern, tokens, kv_heads=kv_heads, head=head, causal=causal, pixels=pixels
    )
    sizes = np.bincount(_stretches(tokens, pixels))
    figure = new_figure(6, 6)
    axes = figure.add_subplot()
    draw_values(
        axes,
        counts / (sizes[:, None] * sizes),
        "times seen" if pixels == tokens.N else "pairs seen, with multiplicity, per pair",
        extent=(0, tokens.N, tokens.N, 0),
    )
    axes.set_xlabel("key position")
    axes.set_ylabel("query position")
    what = f"{named(pattern)}{', causal' if causal else ''}, head {head}"
    figure.suptitle(title or what, wrap=True, fontsize=9)
    return figure


def draw_values(
    axes: Axes, values: Floats, label: str, *, extent: tuple[float, float, float, float]
) -> None:
    """Values as colours, darker where larger, with a colour bar; zeros are left blank."""
    figure = axes.figure
    shown = np.ma.masked_equal(values, 0)
    levels = np.unique(shown.compressed())
    drawn: dict[str, Any] = {"extent": extent, "interpolation": "nearest"}
    if not len(levels):
        axes.imshow(shown, **drawn)
        return
    if len(levels) > _FEW:
        image = axes.imshow(shown, cmap=_colours(256), norm=_norm(levels), **drawn)
        figure.colorbar(image, ax=axes, label=label, shrink=0.8)
        return
    from matplotlib.colors import BoundaryNorm

    number = np.ma.masked_array(np.searchsorted(levels, values), mask=shown.mask)
    borders = np.arange(len(levels) + 1) - 0.5
    image = axes.imshow(
        number, cmap=_colours(len(levels)), norm=BoundaryNorm(borders, len(levels)), **drawn
    )
    bar = figure.colorbar(image, ax=axes, label=label, shrink=0.12 * len(levels))
    bar.set_ticks(list(range(len(levels))), labels=[f"{level:.3g}" for level in levels])
    bar.ax.tick_params(length=0)


def _colours(count: int) -> ListedColormap:
    """From light, but not so light as to be lost on white, to dark."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap

    return ListedColormap(colormaps["viridis_r"](np.linspace(0.12, 0.9, count)))


def _norm(levels: Floats) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    least, most = float(levels[0]), float(levels[-1])
    if most < _WIDE * least:
        return Normalize(0, most)
    return LogNorm(least, most)
