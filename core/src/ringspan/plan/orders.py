"""Permutations by the name of their ordering, each built once."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, cast

from ringspan.catalogue import catalogue
from ringspan.contracts.errors import BrokenContract
from ringspan.contracts.tokens import Tokens

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

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
    permutation = provider.places(tokens, shards=shards, weights=weights, device="cpu")
    if permutation.tokens.numel() != tokens.N:
        raise BrokenContract(
            f"ordering {ordering!r}",
            expected=f"a permutation of {tokens.N} tokens",
            got=f"{permutation.tokens.numel()} places",
        )
    array: npt.NDArray[np.int64] = permutation.tokens.numpy()
    array.flags.writeable = False
    return array
