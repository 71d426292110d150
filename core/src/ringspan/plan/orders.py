"""Permutations by the name of their ordering, each built once."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, cast

from ringspan.catalogue import catalogue
from ringspan.contracts.errors import BrokenContract
from ringspan.contracts.ordering import Permutation
from ringspan.contracts.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor

    from ringspan.contracts.ordering import Ordering

__all__ = ["order"]


@lru_cache(maxsize=64)
def order(
    ordering: str,
    tokens: Tokens,
    shards: int = 1,
    weights: tuple[float, ...] | None = None,
) -> npt.NDArray[np.int64]:
    """The token at each place, int64 `[N]`, along the named ordering."""
    provider = cast("Ordering", catalogue().provider("ordering", ordering))
    try:
        # A plugin may find its own fault while it builds the permutation.
        permutation = provider.places(tokens, shards=shards, weights=weights, device="cpu")
        array: npt.NDArray[np.int64] = _checked(permutation, tokens.N).numpy()
    except BrokenContract as fault:
        raise BrokenContract(
            f"ordering {ordering!r}", expected=fault.expected, got=fault.got
        ) from fault
    array.flags.writeable = False
    return array


def _checked(permutation: object, N: int) -> Tensor:
    """The token at each place, once it is sure that every token stands at exactly one."""
    if not isinstance(permutation, Permutation):
        raise BrokenContract("places", expected="a Permutation", got=type(permutation).__name__)
    if permutation.tokens.shape != (N,):
        raise BrokenContract(
            "places",
            expected=f"a permutation of {N} tokens",
            got=f"tokens of shape {list(permutation.tokens.shape)}",
        )
    # Built again, for a plugin may have filled in the fields itself.
    return Permutation.from_tokens(permutation.tokens).tokens
