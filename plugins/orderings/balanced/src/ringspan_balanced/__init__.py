"""Orderings for storage that give every rank its share of the causal work: zigzag and striped."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import Ordering, hookimpl

from ringspan_balanced.striped import Striped
from ringspan_balanced.zigzag import Zigzag

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Striped", "Zigzag", "ringspan_orderings"]


@hookimpl
def ringspan_orderings() -> Sequence[Ordering]:
    """Offers `zigzag` and `striped`."""
    return [Zigzag(), Striped()]
