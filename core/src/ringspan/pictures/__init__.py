"""Pictures of patterns, orderings and what they do to each other. Needs matplotlib (`[plot]`)."""

from __future__ import annotations

from ringspan.pictures.blocks import ActiveBlocks, active_blocks, blocks_picture
from ringspan.pictures.coverage import coverage_picture
from ringspan.pictures.curves import curve_picture
from ringspan.pictures.orderings import ordering_picture
from ringspan.pictures.patterns import pairs_per_pixel, pattern_picture
from ringspan.pictures.sheet import check_out, png, save

__all__ = [
    "ActiveBlocks",
    "active_blocks",
    "blocks_picture",
    "check_out",
    "coverage_picture",
    "curve_picture",
    "ordering_picture",
    "pairs_per_pixel",
    "pattern_picture",
    "png",
    "save",
]
