"""Which keys a dilated pattern shows to a query, and how much of an attention map lies on them.

Written down from the definition, apart from the library: branch `c` shows key `j` to query `i`
where both are kept and stand in one segment, `i // w == j // w`, counted in places.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import ringspan as rs
import torch
from ringspan.testing.multiplicity import head_offset

if TYPE_CHECKING:
    from jaxtyping import Bool, Float, Int
    from ringspan.contracts.tokens import Tokens
    from torch import Tensor

__all__ = ["Rows", "captured", "captured_by_band", "heads_that_show", "places", "sampled", "shown"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some rows of an attention map."""

    queries: Int[Tensor, " Q"]
    """Positions."""
    mass: Float[Tensor, "Q N"]
    """Each row's sum is 1."""

    def of_others(self) -> Rows:
        """The same without what a query gives to itself, which every pattern shows."""
        mass = self.mass.scatter(1, self.queries[:, None], 0.0)
        return Rows(self.queries, mass / mass.sum(-1, keepdim=True))


def places(tokens: Tokens, ordering: str) -> Int[Tensor, " N"]:
    """Where each token stands along an ordering."""
    order = torch.from_numpy(rs.Layout(tokens, ordering=ordering).order.copy())
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))


def sampled(N: int, count: int) -> Int[Tensor, " Q"]:
    """Some positions, the same ones every time."""
    return torch.randperm(N, generator=torch.Generator().manual_seed(0))[:count]


def shown(
    pattern: rs.Dilated,
    place: Int[Tensor, " N"],
    queries: Int[Tensor, " Q"],
    head: int,
    heads: int,
) -> Bool[Tensor, "Q N"]:
    """Which keys the `queries` of a head see in at least one branch.

    Args:
        pattern: with offsets by one rule for all heads; its own `along` is not looked at.
        place: where each token stands along the ordering that the pattern is taken along.
        queries: positions.
        head: one of `heads`, each with keys and values of its own.
        heads: how many there are.
    """
    assert isinstance(pattern.head_offsets, str)
    seen = torch.zeros(len(queries), len(place), dtype=torch.bool)
    for length, rate in zip(pattern.segment_lengths, pattern.dilation_rates, strict=True):
        offset = head_offset(pattern.head_offsets, head, heads, heads, rate)
        kept = place % length % rate == offset
        keys = torch.where(kept, place // length, -1)
        own = torch.where(kept[queries], place[queries] // length, -2)
        seen |= own[:, None] == keys[None]
    return seen


def heads_that_show(
    pattern: rs.Dilated, place: Int[Tensor, " N"], queries: Int[Tensor, " Q"], heads: int
) -> Float[Tensor, "Q N"]:
    """The share of heads in which each key is shown to each query; arguments as for `shown`."""
    share = torch.zeros(len(queries), len(place))
    for head in range(heads):
        share += shown(pattern, place, queries, head, heads)
    return share / heads


def captured(rows: Rows, share: Float[Tensor, "Q N"]) -> float:
    """How much of the attention mass lies on keys shown, the mean over queries and heads.

    Args:
        rows: of the attention map.
        share: of heads that show each key, as `heads_that_show` gives it.
    """
    return float((rows.mass * share).sum(-1).mean())


def captured_by_band(
    rows: Rows, share: Float[Tensor, "Q N"], band: Int[Tensor, "Q N"], bands: int
) -> Float[Tensor, " bands"]:
    """The same for the keys of each band alone: of the mass that lies there, the share shown."""
    total, found = torch.zeros(2, bands, dtype=rows.mass.dtype)
    total.index_add_(0, band.flatten(), rows.mass.flatten())
    found.index_add_(0, band.flatten(), (rows.mass * share).flatten())
    share_of_each: Tensor = found / total
    return share_of_each
