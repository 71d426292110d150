"""Tokens are dealt to the shards in turn."""

from __future__ import annotations

from typing import ClassVar

import torch
from ringspan.contracts import (
    Availability,
    DeviceInfo,
    Ordering,
    Permutation,
    Tokens,
    shard_sizes,
)

__all__ = ["Striped"]


class Striped(Ordering):
    """Tokens dealt one by one: round-robin, or in proportion to uneven sizes.

    Token number `j` of a shard of `n` is due at `(j + 1/2) / n` of the way, and tokens are dealt
    in the order in which they are due, ties to the lower shard. So the mean positions of two
    shards differ by less than a round of the deal, which is `shards` tokens. Positions in a
    shard ascend.

    Example:
        >>> from ringspan.contracts import Sequence
        >>> Striped().places(Sequence(6), shards=2).tokens.tolist()
        [0, 2, 4, 1, 3, 5]
        >>> Striped().places(Sequence(6), shards=2, weights=(2.0, 1.0)).tokens.tolist()
        [0, 2, 3, 5, 1, 4]
    """

    name: ClassVar[str] = "striped"

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable everywhere: fractions and a sort."""
        return Availability.yes()

    def places(
        self,
        tokens: Tokens,
        *,
        shards: int = 1,
        weights: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
    ) -> Permutation:
        """The permutation of `tokens`, by position whatever they are; one shard: the identity."""
        sizes = torch.tensor(shard_sizes(tokens.N, shards, weights))
        # On the CPU, for not every device divides in float64.
        due = torch.cat([(torch.arange(n) + 0.5).double() / n for n in sizes.tolist()])
        owner = torch.arange(shards).repeat_interleave(sizes)
        dealt = owner[torch.argsort(due, stable=True)]
        return Permutation.from_tokens(torch.argsort(dealt, stable=True).to(device))
