"""The photograph, and what one query sees of it along each ordering. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from examples.bundled import photograph
from examples.image.dilated import rows_of, share_of
from examples.image.features import PATCH, patches
from examples.image.problem import Problem
from examples.orderings import ORDERINGS

__all__ = ["draw"]


def draw(problem: Problem, folder: Path) -> list[Path]:
    """Writes the pictures, and returns where they are."""
    return [_coverage(problem, folder / "coverage.png")]


def _coverage(problem: Problem, path: Path) -> Path:
    """The photograph, a row of its attention map, and how large a share of heads sees what."""
    side, name = problem.size, problem.photographs[0]
    # A little off the middle, where all curves cross the border of their largest segments.
    query = torch.tensor([side * (side // 2 - side // 8) + side // 2 - side // 8])
    figure = Figure(figsize=(12, 6.5), layout="constrained")
    axes = figure.subplots(2, 4).flat
    pixels = patches(photograph(name), side).reshape(-1, 3, PATCH * PATCH).mean(-1)
    axes[0].imshow(pixels.reshape(side, side, 3).clip(0, 1))
    axes[0].set_title(f"{name}, {side} x {side} patches")
    for panel, ordering in zip(axes[1:], ORDERINGS, strict=False):
        share = share_of(problem, ordering, query)[0]
        panel.imshow(share.reshape(side, side), vmin=0, vmax=1)
        panel.set_title(f"share of heads that see it: {ordering}")
    mass = rows_of(problem, name, problem.scale, query).mass[0]
    axes[7].imshow(mass.reshape(side, side).log10())
    axes[7].set_title("attention map of the query, log")
    for panel in figure.axes:
        panel.plot(query % side, query // side, "r+", markersize=10)
        panel.set_axis_off()
    figure.savefig(path, dpi=100)
    return path
