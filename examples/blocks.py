"""How many pairs of blocks are computed under each ordering, as `explain` counts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import ringspan as rs

if TYPE_CHECKING:
    from ringspan.contracts.pattern import Pattern
    from ringspan.contracts.tokens import Tokens

__all__ = ["BLOCK", "active_blocks"]

BLOCK = 64
"""Consecutive places in a block: what a `Layout` takes by default."""


def active_blocks(pattern: Pattern, tokens: Tokens) -> dict[str, int]:
    """By ordering, the pairs of blocks of which one has a query that sees a key of the other."""
    report = rs.explain(rs.Inputs(N=tokens.N, heads=1, head_dim=16), pattern=pattern, tokens=tokens)
    assert report.active_blocks is not None
    assert report.active_blocks.block_size == BLOCK
    return report.active_blocks.counts
