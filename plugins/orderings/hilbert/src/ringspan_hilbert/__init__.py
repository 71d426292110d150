"""Space-filling curves: Hilbert, Morton, and a Hilbert-like one through boxes of any size."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import Ordering, hookimpl

from ringspan_hilbert.curves import Curve, Gilbert, Hilbert, Morton

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Curve", "Gilbert", "Hilbert", "Morton", "ringspan_orderings"]


@hookimpl
def ringspan_orderings() -> Sequence[Ordering]:
    """Offers `hilbert`, `morton` and `gilbert`."""
    return [Hilbert(), Morton(), Gilbert()]
