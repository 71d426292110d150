"""Plain scans: identity, row-major, snake and tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import Ordering, hookimpl

from ringspan_identity.scans import Identity, RowMajor, Snake, Tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Identity", "RowMajor", "Snake", "Tiles", "ringspan_orderings"]


@hookimpl
def ringspan_orderings() -> Sequence[Ordering]:
    """Offers `identity`, `row-major`, `snake` and `tiles`."""
    return [Identity(), RowMajor(), Snake(), Tiles()]
