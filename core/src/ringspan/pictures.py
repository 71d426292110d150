"""Pictures of patterns and orderings, and of numbers over time. Needs matplotlib (`[plot]`)."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Pattern
from ringspan.contracts.tokens import Tokens
from ringspan.plan.activity import Seen
from ringspan.plan.orders import order

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.figure import Figure

    Ints = npt.NDArray[np.int64]

__all__ = [
    "check_out",
    "curve_picture",
    "ordering_picture",
    "pairs_per_pixel",
    "pattern_picture",
    "png",
    "save",
]

SUFFIXES = (".png", ".svg")
_PIXELS = 512
_MOST_TOKENS = 2**20
_MOST_POINTS = _PIXELS**2
"""Of a curve: with more, its turns are smaller than a picture's pixels."""


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
    return seen.pairs(np.arange(tokens.N) * pixels // tokens.N, pixels, head)


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
    from matplotlib.colors import LogNorm

    _check_drawable(tokens, _MOST_TOKENS)
    if kv_heads < 1:
        raise InvalidArgument("kv_heads", expected="an integer >= 1", got=str(kv_heads))
    if not 0 <= head < kv_heads:
        raise InvalidArgument("head", expected=f"0 .. {kv_heads - 1}", got=str(head))
    pixels = min(tokens.N, _PIXELS)
    counts = pairs_per_pixel(
        pattern, tokens, kv_heads=kv_heads, head=head, causal=causal, pixels=pixels
    )
    shares = np.ma.masked_equal(counts * (pixels / tokens.N) ** 2, 0)
    figure = _figure(6, 6)
    axes = figure.add_subplot()
    image = axes.imshow(
        shares,
        cmap="viridis_r",
        norm=LogNorm(vmin=max(float(shares.min()), 1e-6), vmax=max(float(shares.max()), 1.0)),
        extent=(0, tokens.N, tokens.N, 0),
        interpolation="nearest",
    )
    axes.set_xlabel("key position")
    axes.set_ylabel("query position")
    what = f"{pattern}{', causal' if causal else ''}, head {head}"
    figure.suptitle(title or what, wrap=True, fontsize=9)
    figure.colorbar(image, label="pairs seen, with multiplicity, per pair", shrink=0.8)
    return figure


def ordering_picture(ordering: str, tokens: Tokens, *, title: str = "") -> Figure:
    """The path through the tokens' coordinates in order of place, from dark to light.

    Raises:
        InvalidArgument: there are no tokens or more than 262,144, or they have no coordinates.
    """
    from matplotlib.collections import LineCollection

    _check_drawable(tokens, _MOST_POINTS)
    coordinates = tokens.coordinates
    if coordinates is None:
        raise InvalidArgument(
            "tokens", expected="tokens with coordinates (Grid or Coordinates)", got=repr(tokens)
        )
    if coordinates.shape[1] == 3:
        return _space_picture(ordering, coordinates[order(ordering, tokens)], title)
    path = coordinates[order(ordering, tokens)][:, ::-1]
    figure = _figure(6, 6)
    axes = figure.add_subplot()
    lines = LineCollection(list(np.stack([path[:-1], path[1:]], axis=1)), cmap="viridis")
    lines.set_array(np.arange(len(path) - 1))
    axes.add_collection(lines)
    axes.autoscale()
    axes.set_aspect("equal")
    axes.invert_yaxis()
    axes.set_xlabel("column")
    axes.set_ylabel("row")
    figure.suptitle(title or f"{ordering}, {tokens}", fontsize=10)
    return figure


def _space_picture(ordering: str, path: npt.NDArray[np.int64], title: str) -> Figure:
    figure = _figure(6, 6)
    axes = figure.add_subplot(projection="3d")
    axes.plot(path[:, 2], path[:, 1], path[:, 0], linewidth=1)
    figure.suptitle(title or f"{ordering}, {len(path)} points", fontsize=10)
    return figure


def curve_picture(
    values: list[float], *, xlabel: str, ylabel: str, levels: dict[str, float]
) -> Figure:
    """Values over their number, from 1, with named horizontal levels."""
    figure = _figure(7, 4)
    axes = figure.add_subplot()
    axes.plot(range(1, len(values) + 1), values, linewidth=1.5)
    for index, (name, level) in enumerate(levels.items()):
        axes.axhline(level, color=f"C{index + 1}", linestyle="--", label=f"{name} {level:.3f}")
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    if levels:
        axes.legend()
    return figure


def _check_drawable(tokens: Tokens, most: int) -> None:
    if not 1 <= tokens.N <= most:
        raise InvalidArgument(
            "tokens", expected=f"1 .. {most:,} tokens to draw", got=f"{tokens.N:,}"
        )


def _figure(width: float, height: float) -> Figure:
    # The object API: unlike pyplot it needs no display and leaves the process's state alone.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    """The picture as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def check_out(path: Path) -> None:
    """Raises `InvalidArgument` unless a PNG or SVG file can be put at `path`."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidArgument("out", expected="a file name ending in .png or .svg", got=str(path))
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise InvalidArgument("out", expected="a file in an existing folder", got=str(path))


def save(figure: Figure, path: Path) -> None:
    """Draws the picture as PNG or SVG, by the suffix of `path`, then writes the file."""
    check_out(path)
    stream = io.BytesIO()
    figure.savefig(stream, format=path.suffix.lower()[1:], dpi=150)
    try:
        path.write_bytes(stream.getvalue())
    except OSError as error:
        raise InvalidArgument(
            "out", expected="a file that can be written", got=f"{path}: {error.strerror}"
        ) from error
