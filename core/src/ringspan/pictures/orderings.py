"""An ordering as the path that it takes through the tokens' coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.tokens import Grid, Tokens
from ringspan.patterns.along import Along
from ringspan.pictures.sheet import check_drawable, named_tokens, new_figure
from ringspan.plan.layout import Layout
from ringspan.plan.orders import order

if TYPE_CHECKING:
    import numpy.typing as npt
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Ints = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

__all__ = ["jumps", "ordering_picture"]

_MOST_POINTS = 2**18
"""Of a curve: with more, its turns are smaller than a picture's pixels."""
_POINTS_ACROSS = 330
"""Of the drawn area, in typographer's points, as line widths are."""
_SCATTER = 3
_TICKS = {2: 9, 3: 4}
"""Of an axis, at most, by the number of axes."""


def ordering_picture(ordering: Along | str, tokens: Tokens, *, title: str = "") -> Figure:
    """The path through the tokens' coordinates in order of place, from dark to light.

    Steps between tokens that are no neighbours, `jumps`, are drawn thinner and fainter. An
    ordering that deals tokens to ranks, such as zigzag, is drawn as one rank stores it.

    Raises:
        InvalidArgument: there are no tokens or more than 262,144, or they have no coordinates;
            or the ordering does not serve them.
    """
    check_drawable(tokens, _MOST_POINTS)
    points = tokens.coordinates
    if points is None:
        raise InvalidArgument(
            "tokens", expected="tokens with coordinates (Grid or Coordinates)", got=repr(tokens)
        )
    path = points[Layout(tokens, ordering=ordering).order]
    space = path.shape[1] == 3
    height, width = np.ptp(path[:, -2:], axis=0) + 1
    figure = new_figure(6.8, 6 if space else 1 + 5 * float(np.clip(height / width, 0.3, 1.6)))
    axes = figure.add_subplot(projection="3d" if space else None)
    _draw_path(axes, path, jumps(path, tokens))
    _name_axes(axes, path)
    what = f"{_described(ordering)}\n{named_tokens(tokens)}"
    if _deals(ordering, tokens):
        what += ", all on one rank: this ordering differs with the number of ranks"
    figure.suptitle(title or what, fontsize=10, wrap=True)
    return figure


def _deals(ordering: Along | str, tokens: Tokens) -> bool:
    """Whether the ordering goes by which rank holds what, and not by the tokens alone."""
    name = ordering if isinstance(ordering, str) else ordering.ordering
    return not np.array_equal(order(name, tokens), order(name, tokens, 2))


def jumps(path: Ints, tokens: Tokens) -> Bools:
    """Which steps of a path, `[N - 1]`, lead to a point that is no neighbour on every axis.

    Neighbours differ by 1 at most; among scattered points, where most steps are longer, by up to
    `_SCATTER` times as much as the middle one of all steps.
    """
    longest = np.abs(np.diff(path, axis=0)).max(axis=1, initial=0)
    usual = float(np.median(longest)) if len(longest) else 1.0
    scattered = usual > 1 and not isinstance(tokens, Grid)
    far: Bools = longest > (_SCATTER * usual if scattered else 1.0)
    return far


def _draw_path(axes: Axes, path: Ints, far: Bools) -> None:
    from matplotlib.collections import LineCollection

    space = path.shape[1] == 3
    # Axes of a picture run the other way: the last axis of the tokens is its x.
    steps = np.stack([path[:-1], path[1:]], axis=1)[:, :, ::-1]
    place = np.arange(len(steps))
    extent = (np.ptp(path, axis=0) + 1).astype(np.float64)
    apart = (extent.prod() / len(path)) ** (1 / len(extent))
    thickest = 1.1 if space else 1.8
    width = float(np.clip(0.35 * _POINTS_ACROSS * apart / extent.max(), 0.5, thickest))
    for some, thickness, opacity in ((far, 0.5 * width, 0.3), (~far, width, 1.0)):
        if space:
            from mpl_toolkits.mplot3d.art3d import Line3DCollection  # type: ignore[import-untyped]

            lines = Line3DCollection(steps[some], cmap="viridis")
        else:
            lines = LineCollection(list(steps[some]), cmap="viridis")
        lines.set_array(place[some])
        lines.set_clim(0, max(1, len(steps)))
        lines.set_linewidth(thickness)
        lines.set_alpha(opacity)
        axes.add_collection(lines)
    if space:
        # Otherwise what is drawn later is what lies nearer, and lines hide a start behind them.
        axes.computed_zorder = False  # type: ignore[attr-defined]
    size = float(np.clip((12 if space else 8) * width, 2, 14))
    for end, shape in ((path[0], "o"), (path[-1], "s")):
        axes.plot(
            *end[::-1, None],
            shape,
            color="tab:red",
            markeredgecolor="white",
            markeredgewidth=0.15 * size / 2,
            markersize=size / 2,
            zorder=5,
        )


def _name_axes(axes: Axes, path: Ints) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.ticker import MaxNLocator

    low, high = path.min(axis=0) - 0.6, path.max(axis=0) + 0.6
    names = ("column", "row", "depth")
    space = len(low) == 3
    for number, letter in enumerate("xyz"[: path.shape[1]]):
        axis = path.shape[1] - 1 - number
        # Rows are counted downwards, as in an image.
        ends = (high[axis], low[axis]) if letter == "y" else (low[axis], high[axis])
        getattr(axes, f"set_{letter}lim")(*ends)
        getattr(axes, f"set_{letter}label")(
            names[number], labelpad=10 if space and letter != "z" else None
        )
        ticks = MaxNLocator(_TICKS[path.shape[1]], integer=True, min_n_ticks=1)
        getattr(axes, f"{letter}axis").set_major_locator(ticks)
    axes.set_aspect("equal")
    scale = ScalarMappable(Normalize(0, max(1, len(path) - 1)), cmap="viridis")
    axes.figure.colorbar(
        scale,
        ax=axes,
        label="place (from circle to square)",
        ticks=MaxNLocator(integer=True),
        shrink=0.8,
        pad=0.1 if space else 0.02,
    )


def _described(ordering: Along | str) -> str:
    along = Along(ordering) if isinstance(ordering, str) else ordering
    said = [along.ordering]
    if along.axes is not None:
        said.append(f"axes {along.axes}")
    if along.chunk is not None:
        said.append(f"anew after every {along.chunk} tokens")
    return ", ".join(said)
