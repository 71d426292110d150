"""The keys that a query sees on one axis of a neighbourhood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

__all__ = ["AxisRule"]


@dataclass(frozen=True, slots=True)
class AxisRule:
    """Window, dilation, stride and edges on one axis, as `Neighborhood` defines them."""

    window: int
    dilation: int
    stride: int
    shift: bool
    causal: bool

    def keys(self, number: Ints, count: Ints) -> tuple[Ints, Ints]:
        """The keys `low .. high - 1` seen by each query; both ascend with the query.

        Queries and keys are numbered within their residue class, which has `count` members.
        """
        in_group = self.stride - 1 if self.causal else self.stride // 2
        leader = np.minimum(number // self.stride * self.stride + in_group, count - 1)
        low = leader - (self.window - 1 if self.causal else self.window // 2)
        if self.causal:
            return np.maximum(low, 0), number + 1
        if self.shift:
            low = np.clip(low, 0, count - self.window)
        return np.maximum(low, 0), np.minimum(low + self.window, count)
