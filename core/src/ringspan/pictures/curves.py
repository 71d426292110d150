"""Numbers over time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.pictures.sheet import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["curve_picture"]


def curve_picture(
    values: list[float], *, xlabel: str, ylabel: str, levels: dict[str, float]
) -> Figure:
    """Values over their number, from 1, with named horizontal levels."""
    figure = new_figure(7, 4)
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
