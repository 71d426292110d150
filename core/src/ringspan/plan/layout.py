"""Which rank holds which tokens, and in which order they are stored."""

from __future__ import annotations

import math
import sys
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import torch

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.tokens import Sequence, Tokens, shard_sizes
from ringspan.plan.orders import order
from ringspan.plan.shards import agree_on_rows, carrier, check_tokens, gathered, own_rows

if TYPE_CHECKING:
    import numpy.typing as npt
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["Layout"]

_MOST_TOKENS = 2**53
"""Shards are measured out in float64, which counts no further."""
_MOST_RANKS = 2**31 - 1
"""Ranks are C integers in every communication library."""


class Layout:
    """Which positions each rank holds, in storage order.

    Tokens are put in order of place along `ordering` and cut into `world_size` consecutive
    shards. The pattern still speaks of positions: a layout changes where rows lie, never the
    result.

    Args:
        N: number of tokens, or the tokens themselves (`Grid`, `Coordinates`).
        world_size: number of shards; 1 with an ordering means: stored in that order.
        ordering: name of an ordering provider; None: the order of positions.
        weights: relative shard sizes, one per rank; None: even (they differ by at most one).
        tokens: what the tokens are, where `N` is a number; orderings that follow a curve need it.
        sizes: exact shard sizes, instead of `weights`; zeros are allowed.
        reason: why it is laid out like this, for `explain` to say; no part of equality.

    Raises:
        InvalidArgument: where sizes or weights do not fit `N` and `world_size`.

    Example:
        >>> Layout(10, world_size=4).positions(1).tolist()
        [3, 4, 5]
    """

    def __init__(
        self,
        N: int | Tokens,
        world_size: int = 1,
        ordering: str | None = None,
        weights: tuple[float, ...] | None = None,
        *,
        tokens: Tokens | None = None,
        sizes: tuple[int, ...] | None = None,
        reason: str = "",
    ) -> None:
        self.tokens = _tokens(N, tokens)
        self.N = self.tokens.N
        self.world_size = _world_size(world_size)
        self.ordering = _ordering(ordering)
        self.weights = _weights(weights, self.world_size)
        self.sizes = _sizes(sizes, self)
        self.explicit_sizes = None if sizes is None else self.sizes
        self.reason = _reason(reason)
        self.text = self._make_text()

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """The position stored at each place, int64 `[N]`."""
        if self.ordering is None:
            return np.arange(self.N, dtype=np.int64)
        weights = self.weights
        if weights is None and self.sizes != shard_sizes(self.N, self.world_size, None):
            weights = tuple(float(size) for size in self.sizes)
        return order(self.ordering, self.tokens, self.world_size, weights)

    @cached_property
    def bounds(self) -> tuple[int, ...]:
        """Rank `p` holds the places `bounds[p] .. bounds[p + 1] - 1`."""
        return (0, *np.cumsum(self.sizes, dtype=np.int64).tolist())

    @property
    def contiguous(self) -> bool:
        """Whether every rank's positions precede the next rank's, in ascending order."""
        return self.ordering is None

    def positions(self, rank: int) -> Int[Tensor, " n"]:
        """The positions that `rank` holds, in storage order: int64, on the CPU."""
        self._check_rank(rank)
        held = self.order[self.bounds[rank] : self.bounds[rank + 1]]
        return torch.from_numpy(held.copy())

    def shard(self, x: Tensor, rank: int | None = None, *, dim: int = 1) -> Tensor:
        """This rank's rows of a full tensor.

        Args:
            x: holds all `N` tokens along `dim`, in order of position.
            rank: whose rows; None: this process's rank in `torch.distributed` (0 for one shard).
            dim: the dimension of tokens; 1 as in `[B, N, ...]`.

        Example:
            >>> Layout(5, 2).shard(torch.arange(5)[None], rank=1).tolist()
            [[3, 4]]
        """
        check_tokens(x, self.N, dim)
        return own_rows(x, self, self.own_rank() if rank is None else rank, dim)

    def gather(self, x: Tensor, group: Any = None, *, dim: int = 1) -> Tensor:
        """The full tensor in order of position, on every rank, from every rank's rows.

        Its gradient is this rank's rows of the upstream gradient: right where every rank
        computes the same loss from the gathered tensor. `ringspan.parallel.gather` knows other
        conventions, and sees to it that ranks agree.

        Args:
            x: this rank's rows along `dim`, as `shard` gives them.
            group: a ProcessGroup or one-dimensional DeviceMesh of `world_size` ranks; None: the
                default group (none is needed for one shard).
            dim: the dimension of tokens.
        """
        check_tokens(x, self.sizes[self.own_rank(group)], dim)
        agree_on_rows("gather", x, self, carrier(x, self, group), dim, "own")
        return gathered(x, self, group, dim, summed=False)

    def own_rank(self, group: Any = None) -> int:
        """This process's rank in `group` (None: the default group, and for one shard 0).

        Raises:
            InvalidArgument: there is no group, or it has another number of ranks.
        """
        if self.world_size == 1 and group is None:
            return 0
        import torch.distributed as dist

        from ringspan.plan.groups import process_group

        if not dist.is_initialized():
            raise InvalidArgument(
                "rank",
                expected=f"a rank in 0 .. {self.world_size - 1}",
                got="None without torch.distributed",
                remedy="Pass rank=, or call torch.distributed.init_process_group first",
            )
        process = process_group(group)
        if process.size() != self.world_size:
            raise InvalidArgument(
                "group",
                expected=f"a group of {self.world_size} ranks, as the layout has",
                got=f"{process.size()} ranks",
                remedy="Pass the group of the layout's ranks, or to layout.shard, rank=",
            )
        return process.rank()

    def _check_rank(self, rank: object) -> None:
        if not _is_integer(rank) or not 0 <= rank < self.world_size:
            raise InvalidArgument(
                "rank", expected=f"an integer in 0 .. {self.world_size - 1}", got=repr(rank)
            )

    def _make_text(self) -> str:
        """Names this layout, but for a plain sequence's length, where only text may go."""
        tokens = "None" if isinstance(self.tokens, Sequence) else self.tokens.text
        return (
            f"({tokens}, {self.world_size!r}, {self.ordering!r}, {self.weights!r}, "
            f"{self.explicit_sizes!r})"
        )

    def _key(self) -> tuple[Any, ...]:
        return (self.tokens, self.world_size, self.ordering, self.weights, self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        # Built again: copies of Coordinates have handles of their own, which the text names.
        given = (self.tokens, self.world_size, self.ordering, self.weights, self.explicit_sizes)
        return (_rebuilt, (*given, self.reason))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        what = self.N if isinstance(self.tokens, Sequence) else self.tokens
        ordering = "" if self.ordering is None else f", ordering={self.ordering!r}"
        return f"Layout({what!r}, world_size={self.world_size}{ordering}, sizes={self.sizes})"


def _rebuilt(
    tokens: Tokens,
    world_size: int,
    ordering: str | None,
    weights: tuple[float, ...] | None,
    sizes: tuple[int, ...] | None,
    reason: str,
) -> Layout:
    return Layout(tokens, world_size, ordering, weights, sizes=sizes, reason=reason)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _tokens(N: object, tokens: Tokens | None) -> Tokens:
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


def _world_size(world_size: object) -> int:
    if not _is_integer(world_size) or not 1 <= world_size <= _MOST_RANKS:
        raise InvalidArgument(
            "world_size", expected=f"an integer in 1 .. {_MOST_RANKS}", got=repr(world_size)
        )
    return world_size


def _ordering(ordering: object) -> str | None:
    if ordering is not None and not isinstance(ordering, str):
        raise InvalidArgument(
            "ordering", expected="the name of an ordering or None", got=repr(ordering)
        )
    return ordering


def _reason(reason: object) -> str:
    if not isinstance(reason, str):
        raise InvalidArgument("reason", expected="text", got=repr(reason))
    return reason


def _weights(weights: object, world_size: int) -> tuple[float, ...] | None:
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


def _sizes(sizes: object, layout: Layout) -> tuple[int, ...]:
    if sizes is None:
        return shard_sizes(layout.N, layout.world_size, layout.weights)
    if layout.weights is not None:
        raise InvalidArgument("sizes", expected="None beside weights", got=repr(sizes))
    if (
        not isinstance(sizes, (tuple, list))
        or len(sizes) != layout.world_size
        or not all(_is_integer(size) and size >= 0 for size in sizes)
        or sum(sizes) != layout.N
    ):
        raise InvalidArgument(
            "sizes",
            expected=f"{layout.world_size} integers >= 0 that sum to {layout.N}",
            got=repr(sizes),
        )
    return tuple(sizes)
