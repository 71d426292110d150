"""Which keys a dilated pattern shows to a query, and how much of an attention map lies on them.

Written down from the definition, apart from the library: branch `c` shows key `j` to query `i`
where both are kept and stand in one segment, `i // w == j // w`, counted in places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ringspan as rs
import torch

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from ringspan.contracts.tokens import Tokens
    from torch import Tensor

__all__ = ["Rows", "View", "captured", "captured_by_band", "places", "sampled"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of an attention map."""

    queries: Int[Tensor, " Q"]
    """Positions."""
    mass: Float[Tensor, "Q N"]
    """Each row's sum is 1."""


@dataclass(frozen=True, eq=False)
class View:
    """A dilated pattern along an ordering, as its heads see it."""

    pattern: rs.Dilated
    """With `head_offsets="modulo"`."""
    place: Int[Tensor, " N"]
    """Where each token stands along the ordering that the pattern is taken along."""
    heads: int

    def __post_init__(self) -> None:
        assert self.pattern.head_offsets == "modulo"

    def shown(self, queries: Int[Tensor, " Q"], head: int) -> Bool[Tensor, "Q N"]:
        """Which keys the `queries` of `head` see in at least one branch."""
        place = self.place
        seen = torch.zeros(len(queries), len(place), dtype=torch.bool)
        branches = zip(self.pattern.segment_lengths, self.pattern.dilation_rates, strict=True)
        for length, rate in branches:
            kept = place % length % rate == head % rate
            keys = torch.where(kept, place // length, -1)
            own = torch.where(kept[queries], place[queries] // length, -2)
            seen |= own[:, None] == keys[None]
        return seen


def places(tokens: Tokens, ordering: str) -> Int[Tensor, " N"]:
    """Where each token stands along an ordering."""
    order = torch.from_numpy(rs.Layout(tokens, ordering=ordering).order.copy())
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def sampled(N: int, count: int) -> Int[Tensor, " Q"]:
    """Some positions, the same ones every time."""
    return torch.randperm(N, generator=torch.Generator().manual_seed(0))[:count]


def captured(rows: Rows, view: View) -> float:
    """The share of attention mass that lies on keys shown, the mean over queries and heads."""
    heads = range(view.heads)
    found = sum(float(rows.mass[view.shown(rows.queries, head)].sum()) for head in heads)
    return found / (view.heads * len(rows.queries))


def captured_by_band(
    rows: Rows, view: View, band: Int[Tensor, "Q N"], bands: int
) -> Float[Tensor, " bands"]:
    """The same for the keys of each band alone: of the mass that lies there, the share shown."""
    total, found = torch.zeros(2, bands, dtype=rows.mass.dtype)
    total.index_add_(0, band.flatten(), rows.mass.flatten())
    for head in range(view.heads):
        seen = view.shown(rows.queries, head)
        found.index_add_(0, band[seen], rows.mass[seen])
    return found / (view.heads * total)
