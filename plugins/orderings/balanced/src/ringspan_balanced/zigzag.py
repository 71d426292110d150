"""Each shard holds a run from the front and a run from the back."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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

__all__ = ["Zigzag"]


class Zigzag(Ordering):
    """Two runs per shard: front runs are laid from the start, back runs from the end.

    The runs of a shard mirror each other, so that all shards have the same mean position, and
    with causal dense attention each does work in proportion to its size. Of a shard of odd
    size one run is longer by a token: the front run and the back run by turns, which keeps the
    work within half of what the last token does. Positions in a shard ascend.

    Example:
        >>> from ringspan.contracts import Sequence
        >>> Zigzag().places(Sequence(8), shards=2).tokens.tolist()
        [0, 1, 6, 7, 2, 3, 4, 5]
    """

    name: ClassVar[str] = "zigzag"

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable everywhere: nothing is computed but runs of integers."""
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
        start, end = 0, tokens.N
        runs = []
        for front, back in _halves(shard_sizes(tokens.N, shards, weights)):
            runs += [torch.arange(start, start + front), torch.arange(end - back, end)]
            start, end = start + front, end - back
        return Permutation.from_tokens(torch.cat(runs).to(device))


def _halves(sizes: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Front and back run of each size; odd tokens go to the front and the back by turns.

    Example:
        >>> list(_halves([4, 3, 5, 2]))
        [(2, 2), (2, 1), (2, 3), (1, 1)]
    """
    odd = 0
    for size in sizes:
        odd += size % 2
        front = size // 2 + (size % 2) * (odd % 2)
        yield front, size - front
