"""The arguments of a layout, checked one by one."""

from __future__ import annotations

import math
import sys
from typing import TypeGuard

from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.tokens import Sequence, Tokens, shard_sizes
from ringspan.patterns.along import Along
from ringspan.plan.restart import check_documents

__all__ = [
    "checked_along",
    "checked_block_size",
    "checked_documents",
    "checked_rank",
    "checked_reason",
    "checked_sizes",
    "checked_tokens",
    "checked_weights",
    "checked_world_size",
]

_MOST_TOKENS = 2**53
"""Shards are measured out in float64, which counts no further."""
_MOST_RANKS = 2**31 - 1
"""Ranks are C integers in every communication library."""


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def checked_tokens(N: object, tokens: Tokens | None) -> Tokens:
    """What the tokens are, from their number or themselves."""
    given = _given_tokens(N, tokens)
    if given.N > _MOST_TOKENS:
        raise InvalidArgument("N", expected=f"at most {_MOST_TOKENS} tokens", got=str(given.N))
    return given


def _given_tokens(N: object, tokens: Tokens | None) -> Tokens:
    if isinstance(N, Tokens):
        if tokens is not None and tokens != N:
            raise InvalidArgument("tokens", expected=f"nothing beside {N!r}", got=repr(tokens))
        return N
    if not _is_integer(N) or N < 0:
        raise InvalidArgument("N", expected="an integer >= 0, Grid or Coordinates", got=repr(N))
    if tokens is None:
        return Sequence(N)
    if not isinstance(tokens, Tokens):
        raise InvalidArgument(
            "tokens", expected="Grid(...), Coordinates(...) or None", got=repr(tokens)
        )
    if tokens.N != N:
        raise InvalidArgument("N", expected=f"{tokens.N}, as many as {tokens!r}", got=str(N))
    return tokens


def checked_world_size(world_size: object) -> int:
    """A number of ranks."""
    if not _is_integer(world_size) or not 1 <= world_size <= _MOST_RANKS:
        raise InvalidArgument(
            "world_size", expected=f"an integer in 1 .. {_MOST_RANKS}", got=repr(world_size)
        )
    return world_size


def checked_along(ordering: object) -> Along | None:
    """What an ordering stands for; storage has no segments to begin anew in."""
    if ordering is not None and not isinstance(ordering, str | Along):
        raise InvalidArgument(
            "ordering", expected="the name of an ordering, Along or None", got=repr(ordering)
        )
    along = Along.of(ordering)
    if along is not None and along.chunk == "segment":
        raise InvalidArgument(
            "ordering",
            expected="chunk=None or an integer: storage has no segments",
            got=repr(along),
            remedy="Give the length of the segments as chunk",
        )
    return along


def checked_documents(documents: object, tokens: Tokens) -> Documents | None:
    """Documents that fit the tokens."""
    if not isinstance(documents, Documents | None):
        raise InvalidArgument("documents", expected="Documents or None", got=repr(documents))
    check_documents(documents, tokens)
    return documents


def checked_block_size(block_size: object) -> int:
    """Tokens of a block."""
    if not _is_integer(block_size) or block_size < 1:
        raise InvalidArgument("block_size", expected="an integer >= 1", got=repr(block_size))
    return block_size


def checked_rank(rank: object, world_size: int) -> int:
    """One of the ranks."""
    if not _is_integer(rank) or not 0 <= rank < world_size:
        raise InvalidArgument(
            "rank", expected=f"an integer in 0 .. {world_size - 1}", got=repr(rank)
        )
    return rank


def checked_reason(reason: object) -> str:
    """Any text."""
    if not isinstance(reason, str):
        raise InvalidArgument("reason", expected="text", got=repr(reason))
    return reason


def checked_weights(weights: object, world_size: int) -> tuple[float, ...] | None:
    """One relative size per rank, or None."""
    if weights is None:
        return None
    if (
        not isinstance(weights, (tuple, list))
        or len(weights) != world_size
        or not all(_is_weight(weight) for weight in weights)
        or not 0 < sum(map(float, weights)) < math.inf
    ):
        raise InvalidArgument(
            "weights",
            expected=f"{world_size} finite numbers >= 0, not all zero, with a finite sum",
            got=repr(weights),
        )
    return tuple(float(weight) for weight in weights)


def _is_weight(value: object) -> bool:
    # A comparison and not isfinite, which overflows on integers that no float can hold.
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value <= sys.float_info.max  # type: ignore[operator]


def checked_sizes(
    sizes: object, N: int, world_size: int, weights: tuple[float, ...] | None
) -> tuple[int, ...]:
    """How many tokens each rank holds."""
    if sizes is None:
        return shard_sizes(N, world_size, weights)
    if weights is not None:
        raise InvalidArgument("sizes", expected="None beside weights", got=repr(sizes))
    if (
        not isinstance(sizes, (tuple, list))
        or len(sizes) != world_size
        or not all(_is_integer(size) and size >= 0 for size in sizes)
        or sum(sizes) != N
    ):
        raise InvalidArgument(
            "sizes",
            expected=f"{world_size} integers >= 0 that sum to {N}",
            got=repr(sizes),
        )
    return tuple(sizes)
