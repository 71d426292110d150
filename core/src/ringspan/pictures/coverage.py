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
_FRAMES = 16
"""Slices of a volume, at most."""
_FRAMES_ACROSS = 8
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

    Tokens in three dimensions are drawn slice by slice of the first axis. Of more than 16 slices
    those are drawn that lie around the query's own and hold the most of what it sees; titles say
    which these are, and how many keys lie in others.

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
    for panel in panels:
        some = np.ones(tokens.N, np.bool_) if panel.frame is None else points[:, 0] == panel.frame
        _draw(panel.axes, points[some][:, -2:], panel.shown.times[some], scale, image)
        if panel.frame in (None, query[0]):
            panel.axes.plot(
                query[-1], query[-2], "o", mec="white", mfc="tab:red", mew=1.2, markersize=7
            )
    whose = "" if heads == 1 else f", all {heads} heads" if head is None else f", head {head}"
    shown = pattern if orderings is None else _taken_along(pattern, None)
    what = (
        f"{named(shown)}{', causal' if causal else ''}\n"
        f"the query at {tuple(query)}{whose}, {named_tokens(tokens)}"
    )
    if panels[0].frame is not None:
        what += _said_of_slices(np.unique(points[:, 0]), panels[0].frame, panels[-1].frame)
    figure.suptitle(title or what, fontsize=9, wrap=True)
    scale.draw_bar(figure, [panel.axes for panel in panels])
    return figure


@dataclass(frozen=True, eq=False)
class _Panel:
    axes: Axes
    shown: Coverage
    frame: int | None
    """Of a volume the slice that is drawn."""


def _panels(
    points: Ints, query: Sequence[int], found: list[Coverage]
) -> tuple[Figure, list[_Panel]]:
    """The figure and its panels with titles; those of a volume begin a row for each ordering."""
    frames: list[int | None] = [None]
    if points.shape[1] == 2:
        across = 2 if len(found) == 4 else min(len(found), _ACROSS)
        down = -(-len(found) // across)
        places = range(len(found))
    else:
        frames = list(_slices(points[:, 0], int(query[0]), found))
        rows = -(-len(frames) // _FRAMES_ACROSS)
        across = -(-len(frames) // rows)
        down = rows * len(found)
        places = range(0, down * across, rows * across)
    height, width = (np.ptp(points[:, -2:], axis=0) + 1).tolist()
    side = 3.4 if across <= _ACROSS else 1.9
    tall = (side - 0.4) * float(np.clip(height / width, 0.4, 2.0))
    figure = new_figure(max(side * across, 4.2) + 0.9, (tall + 0.55) * down + 0.5)
    grid = figure.subplots(down, across, squeeze=False, sharex=True, sharey=True).ravel()
    drawn = []
    for one, place in zip(found, places, strict=True):
        for number, frame in enumerate(frames):
            drawn.append(_Panel(grid[place + number], one, frame))
        _name_panels(drawn[-len(frames) :], points)
    for axes in set(grid) - {panel.axes for panel in drawn}:
        axes.set_axis_off()
    return figure, drawn


def _name_panels(panels: list[_Panel], points: Ints) -> None:
    """Titles of what is drawn for one ordering."""
    first, one = panels[0], panels[0].shown
    said = f"{one.name}: " if one.name else ""
    said += f"{one.seen:,} of {len(points):,} keys"
    for panel in panels:
        panel.axes.tick_params(labelsize=7)
        panel.axes.locator_params(integer=True)
    if first.frame is None:
        first.axes.set_title(said, fontsize=9)
        return
    drawn = np.isin(points[:, 0], np.array([panel.frame for panel in panels]))
    elsewhere = int(np.count_nonzero(one.times[~drawn]))
    if elsewhere:
        said += f", {elsewhere:,} ({elsewhere / one.seen:.1%}) in slices that are not drawn"
    for panel in panels:
        panel.axes.set_title(f"slice {panel.frame}", fontsize=8)
    # Above the title of its own slice, and as wide as it needs to be.
    first.axes.set_title(f"{said}\n", fontsize=9, loc="left")


def _said_of_slices(there: Ints, first: int | None, last: int | None) -> str:
    if len(there) <= _FRAMES:
        return ""
    return f"\nslices {first} .. {last}, {_FRAMES} of {len(there):,}"


def _slices(depths: Ints, own: int, found: list[Coverage]) -> list[int]:
    """The slices that have tokens, in order; of too many, neighbours with a query's own.

    Of such, those in which the most keys are seen; where equal, the query's own is in the middle.
    """
    there, number = np.unique(depths, return_inverse=True)
    if len(there) <= _FRAMES:
        return [int(depth) for depth in there]
    seen = sum(np.bincount(number[one.times > 0], minlength=len(there)) for one in found)
    before = np.append(0, np.cumsum(seen))
    middle = int(np.searchsorted(there, own))
    starts = range(max(middle - _FRAMES + 1, 0), min(middle, len(there) - _FRAMES) + 1)
    start = max(
        starts,
        key=lambda start: (
            before[start + _FRAMES] - before[start],
            -abs(start + _FRAMES // 2 - middle),
        ),
    )
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
