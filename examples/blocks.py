"""How many pairs of blocks are computed, as `explain` counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ringspan as rs

if TYPE_CHECKING:
    from ringspan.contracts.pattern import Pattern

__all__ = ["active_blocks"]


def active_blocks(pattern: Pattern, layout: rs.Layout) -> int:
    """Pairs of the layout's blocks of which one has a query that sees a key of the other."""
    report = rs.explain(rs.Inputs(N=layout.N, heads=1, head_dim=16), pattern=pattern, layout=layout)
    assert report.active_blocks is not None
    return report.active_blocks.counts[layout.ordering]
