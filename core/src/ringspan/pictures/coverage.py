"""Where one query looks, on the tokens' own coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Pattern
from ringspan.contracts.tokens import Tokens
from ringspan.patterns.along import Along
from ringspan.pictures.sheet import (
    check_drawable,
    check_head,
    check_orderings,
    named,
    named_tokens,
    new_figure,
)
from ringspan.plan.activity import Seen

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

    Ints = npt.NDArray[np.int64]

__all__ = ["Coverage", "coverage", "coverage_picture", "token_at"]

_MOST_TOKENS = 2**20
_PIXELS = 1024
"""A side of what is drawn; points that lie further apart than that share a pixel."""
_FRAMES = 7
"""Of a volume: the query's own slice and as many around it as fit in one row."""
_ACROSS = 3
_FEW = 8


@dataclass(frozen=True, eq=False)
class Coverage:
    """How often a query sees each key."""

    name: str
    times: Ints
    """`[N]`, over all heads that were asked for."""

    @property
    def seen(self) -> int:
        """Different keys."""
        return int(np.count_nonzero(self.times))


def token_at(tokens: Tokens, point: Sequence[int]) -> int:
    """The position of the token at a point.

    Raises:
        InvalidArgument: the tokens have no coordinates, or none of them lies there.
    """
    points = tokens.coordinates
    if points is None:
        raise InvalidArgument(
            "tokens", expected="tokens with coordinates (Grid or Coordinates)", got=repr(tokens)
        )
    if len(point) != points.shape[1]:
        raise InvalidArgument(
            "query", expected=f"{points.shape[1]} coordinates, as {tokens} has", got=repr(point)
        )
    there = np.flatnonzero((points == np.asarray(point)).all(axis=1))
    if not len(there):
        raise InvalidArgument("query", expected=f"a point of {tokens}", got=repr(tuple(point)))
    return int(there[0])


def coverage(
    pattern: Pattern,
    tokens: Tokens,
    query: Sequence[int],
    *,
    heads: int = 1,
    head: int | None = None,
    causal: bool = False,
    orderings: Sequence[str] | None = None,
) -> list[Coverage]:
    """How often the query at a point sees each key, for one head or all of them together.

    Args:
        pattern: what attends to what.
        tokens: with coordinates.
        query: the point of the query, such as `(32, 32)`.
        heads: query heads; each with a key/value head of its own.
        head: whose sight; None: the sum over all.
        causal: whether a token sees earlier ones only.
        orderings: names that take the place of the pattern's own `along`, one after the other.

    Raises:
        InvalidArgument: an argument does not fit the others; or `orderings` are given to a
            pattern that has no `along`.
    """
    check_drawable(tokens, _MOST_TOKENS)
    check_head(0 if head is None else head, heads, "heads")
    position = token_at(tokens, query)
    if orderings is None:
        along = Along.of(getattr(pattern, "along", None))
        variants = [("" if along is None else f"along {along.ordering}", pattern)]
    else:
        check_orderings(orderings)
        variants = [(f"along {name}", _taken_along(pattern, name)) for name in orderings]
    asked = range(heads) if head is None else [head]
    found = []
    for name, variant in variants:
        seen = Seen.of(variant, tokens, heads=heads, causal=causal)
        times = sum((seen.row(position, each) for each in asked), np.zeros(tokens.N, np.int64))
        found.append(Coverage(name, times))
    return found


def _taken_along(pattern: Pattern, ordering: str | None) -> Pattern:
    if not hasattr(pattern, "along"):
        raise InvalidArgument(
            "orderings",
            expected="a pattern that is taken along an ordering, such as Dilated or Dense",
            got=repr(pattern),
        )
    along = Along.of(pattern.along)
    if ordering is None or along is None:
        along = Along.of(ordering)
    else:
        along = replace(along, ordering=ordering)
    taken: Pattern = replace(pattern, along=along)  # type: ignore[type-var]
    return taken


def coverage_picture(
    pattern: Pattern,
    tokens: Tokens,
    query: Sequence[int],
    *,
    heads: int = 1,
    head: int | None = None,
    causal: bool = False,
    orderings: Sequence[str] | None = None,
    image: npt.NDArray[Any] | None = None,
    title: str = "",
) -> Figure:
    """`coverage` drawn where the tokens lie, the query marked; one panel for each ordering.

    Of tokens in three dimensions the query's slice of the first axis is drawn, and the slices
    around it, one row for each ordering.

    Args:
        pattern: as for `coverage`, like the arguments not named here.
        tokens: likewise.
        query: likewise.
        heads: likewise.
        head: likewise.
        causal: likewise.
        orderings: likewise.
        image: a picture of what the tokens show, `[height, width]` or `[height, width, channels]`,
            as `matplotlib.image.imread` gives it; stretched over the tokens, in grey.
        title: instead of a description.
    """
    points = tokens.coordinates
    if image is not None:
        image = _grey(image)
        if points is not None and points.shape[1] != 2:
            raise InvalidArgument(
                "image", expected="no image, or tokens on two axes", got=repr(tokens)
            )
    found = coverage(
        pattern,
        tokens,
        query,
        heads=heads,
        head=head,
        causal=causal,
        orderings=orderings,
    )
    assert points is not None
    figure, panels = _panels(points, query, found)
    scale = _Scale.to(max(int(one.times.max()) for one in found))
    for panel, one, frame in panels:
        some = np.ones(tokens.N, np.bool_) if frame is None else points[:, 0] == frame
        _draw(panel, points[some][:, -2:], one.times[some], scale, image)
        if frame is None or frame == query[0]:
            panel.plot(query[-1], query[-2], "o", mec="white", mfc="tab:red", mew=1.2, markersize=7)
    whose = "" if heads == 1 else f", all {heads} heads" if head is None else f", head {head}"
    shown = pattern if orderings is None else _taken_along(pattern, None)
    what = (
        f"{named(shown)}{', causal' if causal else ''}\n"
        f"the query at {tuple(query)}{whose}, {named_tokens(tokens)}"
    )
    figure.suptitle(title or what, fontsize=9, wrap=True)
    scale.draw_bar(figure, [panel for panel, _, _ in panels])
    return figure


def _panels(
    points: Ints, query: Sequence[int], found: list[Coverage]
) -> tuple[Figure, list[tuple[Axes, Coverage, int | None]]]:
    """The figure and its panels: with what is drawn there, and of a volume which slice."""
    if points.shape[1] == 2:
        frames: list[int | None] = [None]
        across = 2 if len(found) == 4 else min(len(found), _ACROSS)
        down = -(-len(found) // across)
    else:
        frames = list(_slices(points[:, 0], int(query[0])))
        across, down = len(frames), len(found)
    height, width = (np.ptp(points[:, -2:], axis=0) + 1).tolist()
    side = 3.4 if across <= _ACROSS else 1.9
    tall = (side - 0.4) * float(np.clip(height / width, 0.4, 2.0))
    figure = new_figure(max(side * across, 4.2) + 0.9, (tall + 0.45) * down + 0.5)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    drawn: list[tuple[Axes, Coverage, int | None]] = []
    wanted = [(one, frame) for one in found for frame in frames]
    for panel, (one, frame) in zip(grid, wanted, strict=False):
        said = f"{one.name}: " if one.name else ""
        if frame is None:
            panel.set_title(f"{said}{one.seen:,} of {len(points):,} keys", fontsize=9)
        else:
            panel.set_title(f"{said if frame == frames[0] else ''}slice {frame}", fontsize=8)
        panel.tick_params(labelsize=7)
        panel.locator_params(integer=True)
        drawn.append((panel, one, frame))
    for panel in grid[len(wanted) :]:
        panel.set_axis_off()
    return figure, drawn


def _slices(depths: Ints, own: int) -> list[int]:
    """The slices around a query's own that have tokens, in order."""
    there = np.unique(depths)
    start = int(np.searchsorted(there, own)) - _FRAMES // 2
    start = min(max(start, 0), max(len(there) - _FRAMES, 0))
    return [int(depth) for depth in there[start : start + _FRAMES]]


def _draw(
    panel: Axes,
    points: Ints,
    times: Ints,
    scale: _Scale,
    image: npt.NDArray[np.float64] | None,
) -> None:
    low, beyond = points.min(axis=0), points.max(axis=0) + 1
    cell = int(-(-(beyond - low).max() // _PIXELS))
    pixels = (points - low) // cell
    shown = np.full(pixels.max(axis=0) + 1, -1, np.int64)
    np.maximum.at(shown, tuple(pixels.T), times)
    bottom, right = low + np.array(shown.shape) * cell
    extent = (low[1] - 0.5, right - 0.5, bottom - 0.5, low[0] - 0.5)
    if image is None:
        # Where there are tokens that are not seen, and where there are none.
        panel.imshow(shown < 0, cmap="Greys", vmin=-0.25, vmax=5, extent=extent)
    else:
        panel.imshow(image, cmap="gray", vmin=-0.9, vmax=1.1, extent=extent)
    panel.imshow(
        np.ma.masked_less_equal(shown, 0),
        cmap=scale.colours,
        norm=scale.norm,
        alpha=1.0 if image is None else 0.75,
        extent=extent,
        interpolation="nearest",
    )


@dataclass(frozen=True, eq=False)
class _Scale:
    """Colours for how often a key is seen, from 1."""

    colours: Colormap
    norm: Normalize
    ticks: list[int] | None

    @classmethod
    def to(cls, most: int) -> _Scale:
        """A colour for each number where they are few."""
        from matplotlib import colormaps
        from matplotlib.colors import BoundaryNorm, ListedColormap, Normalize

        colours = colormaps["plasma_r"]
        if most > _FEW:
            return cls(ListedColormap(colours(np.linspace(0.12, 1, 256))), Normalize(1, most), None)
        several = max(most, 1)
        listed = ListedColormap(colours(np.linspace(0.12, 0.85, several)))
        norm = BoundaryNorm(np.arange(several + 1) + 0.5, several)
        return cls(listed, norm, list(range(1, several + 1)))

    def draw_bar(self, figure: Figure, panels: list[Axes]) -> None:
        """Beside all panels."""
        from matplotlib.cm import ScalarMappable

        colours = ScalarMappable(self.norm, self.colours)
        bar = figure.colorbar(colours, ax=panels, label="times seen", shrink=0.8)
        if self.ticks is not None:
            bar.set_ticks(self.ticks)
            bar.ax.tick_params(length=0)


def _grey(image: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Its lightness, 0 .. 1."""
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] not in (1, 2, 3, 4)):
        raise InvalidArgument(
            "image",
            expected="an image [height, width] or [height, width, 1 .. 4 channels]",
            got=f"shape {list(image.shape)}",
        )
    most = np.iinfo(image.dtype).max if np.issubdtype(image.dtype, np.integer) else 1.0
    lightness = np.asarray(image, np.float64) / float(most)
    if image.ndim == 2:
        return lightness
    if image.shape[2] < 3:
        grey: npt.NDArray[np.float64] = lightness[..., 0]
        return grey
    # Rec. 601 luma.
    luma: npt.NDArray[np.float64] = lightness[..., :3] @ np.array([0.299, 0.587, 0.114])
    return luma
