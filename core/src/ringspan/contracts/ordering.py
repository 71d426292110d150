"""The contract of an ordering: where each token stands along a curve."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from ringspan_registry.provider import Provider

from ringspan.contracts.errors import BrokenContract
from ringspan.contracts.tokens import Tokens

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["Ordering", "Permutation"]


@dataclass(frozen=True, slots=True, eq=False)
class Permutation:
    """A bijection between tokens and places.

    `tokens[place]` is the token that stands at a place; `places[token]` is where a token
    stands. Both are int64 `[N]`. Built with `from_tokens`, `from_places` or `from_keys`,
    which assert the bijection.
    """

    tokens: Int[Tensor, " N"]
    places: Int[Tensor, " N"]

    @classmethod
    def from_tokens(cls, tokens: Int[Tensor, " N"]) -> Permutation:
        """From the token at each place."""
        return cls(tokens, _inverse(tokens))

    @classmethod
    def from_places(cls, places: Int[Tensor, " N"]) -> Permutation:
        """From the place of each token."""
        return cls(_inverse(places), places)

    @classmethod
    def from_keys(cls, keys: Int[Tensor, " N"]) -> Permutation:
        """From a sort key per token; equal keys keep the order of the tokens."""
        return cls.from_tokens(torch.argsort(keys, stable=True))


def _inverse(permutation: Tensor) -> Tensor:
    """The inverse, or `BrokenContract` with the first index that is out of range or repeated."""
    count = permutation.numel()
    if permutation.dtype != torch.int64 or permutation.dim() != 1:
        raise BrokenContract(
            "permutation",
            expected="int64 of shape [N]",
            got=f"{permutation.dtype} of shape {list(permutation.shape)}",
        )
    outside = (permutation < 0) | (permutation >= count)
    if outside.any():
        index = int(outside.nonzero()[0])
        raise BrokenContract(
            "permutation",
            expected=f"values in 0 .. {count - 1}",
            got=f"{int(permutation[index])} at index {index}",
        )
    inverse = torch.empty_like(permutation)
    each = torch.arange(count, device=permutation.device)
    inverse[permutation] = each
    if not torch.equal(inverse[permutation], each):
        first = torch.full_like(permutation, count).scatter_reduce_(0, permutation, each, "amin")
        repeated = int((first[permutation] != each).nonzero()[0])
        value = int(permutation[repeated])
        raise BrokenContract(
            "permutation",
            expected="each value once (a bijection)",
            got=f"{value} at index {repeated} again, after index {int(first[value])}",
        )
    return inverse


class Ordering(Provider):
    """Maps tokens to places along a curve.

    `places` must be a pure function of its arguments, and order a `Grid` as it orders the same
    points: a packed document is handed over as its points. An ordering that needs geometry raises
    `InvalidArgument` for a plain `Sequence`, naming `Grid` and `fold=True`.
    """

    @abstractmethod
    def places(
        self,
        tokens: Tokens,
        *,
        shards: int = 1,
        weights: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
    ) -> Permutation:
        """The permutation of `tokens`.

        Args:
            tokens: what is ordered.
            shards: into how many shards the places will be cut, in order, with
                `shard_sizes(tokens.N, shards, weights)` tokens each. Only orderings that
                balance work look at it.
            weights: relative sizes of the shards; None: even.
            device: where the permutation's tensors live.
        """
