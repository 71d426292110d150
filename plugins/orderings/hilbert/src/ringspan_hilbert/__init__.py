"""Space-filling curves: the Hilbert curve, with Morton's beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import Ordering, hookimpl

from ringspan_hilbert.curves import Curve, Hilbert, Morton

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Curve", "Hilbert", "Morton", "ringspan_orderings"]


@hookimpl
def ringspan_orderings() -> Sequence[Ordering]:
    """Offers `hilbert` and `morton`."""
    return [Hilbert(), Morton()]
