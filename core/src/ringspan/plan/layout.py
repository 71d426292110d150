"""Which rank holds which tokens, and in which order they are stored."""

from __future__ import annotations

import ast
import itertools
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Domain, Listed
from ringspan.contracts.tokens import Sequence, Tokens, shard_sizes, tokens_from
from ringspan.patterns.along import Along
from ringspan.plan import layout_checks as checked
from ringspan.plan.orders import order
from ringspan.plan.shards import (
    agree_on_rows,
    carrier,
    check_tokens,
    gathered,
    own_rows,
    permuted,
)

if TYPE_CHECKING:
    import numpy.typing as npt
    from jaxtyping import Int

    from ringspan.contracts.pattern import Pattern

__all__ = ["Layout"]

_BLOCK_SIZE = 64
"""Of the tiles of most kernels a side or half of one."""


class Layout:
    """Which positions each rank holds, in storage order.

    Tokens are put in order of place along `ordering` and cut into `world_size` consecutive
    shards. The pattern still speaks of positions: a layout changes where rows lie, never the
    result.

    On one rank, put the input in order once, outside the layers: `x = layout.arrange(x)`, then
    `attention(.., layout=layout)` in every layer, and `layout.restore(y)` at the end.

    Args:
        N: number of tokens, or the tokens themselves (`Grid`, `Coordinates`).
        world_size: number of shards; 1 with an ordering means: stored in that order.
        ordering: name of an ordering provider, or an `Along`; None: the order of positions.
        weights: relative shard sizes, one per rank; None: even (they differ by at most one).
        tokens: what the tokens are, where `N` is a number; orderings that follow a curve need it.
        sizes: exact shard sizes, instead of `weights`; zeros are allowed.
        documents: of packed sequences: each is put in order alone, one after the other.
        block_size: with an ordering, patterns that say of any two tokens whether one sees the
            other (`Neighborhood` on two or three axes, `BlockSparse.from_mask`) are computed in
            blocks of so many consecutive places of a rank. None: in blocks of the pattern's own
            choice, whose rows are gathered from wherever they lie.
        reason: why it is laid out like this, for `explain` to say; no part of equality.

    Raises:
        InvalidArgument: an argument is wrong or does not fit the others; names it.

    Example:
        >>> Layout(10, world_size=4).positions(1).tolist()
        [3, 4, 5]
    """

    def __init__(
        self,
        N: int | Tokens,
        world_size: int = 1,
        ordering: Along | str | None = None,
        weights: tuple[float, ...] | None = None,
        *,
        tokens: Tokens | None = None,
        sizes: tuple[int, ...] | None = None,
        documents: Documents | None = None,
        block_size: int | None = _BLOCK_SIZE,
        reason: str = "",
    ) -> None:
        self.tokens = checked.checked_tokens(N, tokens)
        self.N = self.tokens.N
        self.world_size = checked.checked_world_size(world_size)
        self.along = checked.checked_along(ordering)
        self.ordering = None if self.along is None else self.along.ordering
        self.weights = checked.checked_weights(weights, self.world_size)
        self.sizes = checked.checked_sizes(sizes, self.N, self.world_size, self.weights)
        self.explicit_sizes = None if sizes is None else self.sizes
        self.documents = checked.checked_documents(documents, self.tokens)
        self.block_size = None if block_size is None else checked.checked_block_size(block_size)
        self.reason = checked.checked_reason(reason)
        self.bounds = (0, *itertools.accumulate(self.sizes))
        """Rank `p` holds the places `bounds[p] .. bounds[p + 1] - 1`."""
        self.text = self._make_text()

    @classmethod
    def best(
        cls,
        tokens: int | Tokens,
        pattern: Pattern,
        block_size: int = _BLOCK_SIZE,
        *,
        world_size: int = 1,
        causal: bool = False,
        documents: Documents | None = None,
        orderings: tuple[str, ...] | None = None,
    ) -> Layout:
        """The layout under which the fewest pairs of blocks are active; `reason` has the counts.

        A pair of blocks, each `block_size` consecutive places, is active where some query of the
        one sees some key of the other. That is what a kernel computes which takes block-sparse
        work whole (`Capabilities.blocks`); others get tiles of the keys that a block sees, which
        are fewer. Where no ordering has fewer than the order of positions, that is kept, with
        blocks of the pattern's own choice; of equal orderings the first of `orderings` is taken.

        Args:
            tokens: what the tokens are.
            pattern: what attends to what.
            block_size: tokens of a block.
            world_size: number of shards; no block lies in two.
            causal: whether a token sees earlier ones only.
            documents: of packed sequences.
            orderings: names to choose from; None: all that are installed and serve the tokens.

        Raises:
            InvalidArgument: the arguments do not fit each other; or there are too many blocks to
                count, see `ringspan.plan.activity`.

        Example:
            >>> from ringspan import Dense
            >>> Layout.best(1000, Dense(), orderings=()).reason  # doctest: +NORMALIZE_WHITESPACE
            'no ordering has fewer than the order of positions, which is kept;
            active pairs of blocks of 64, of 256: 256 identity'
        """
        from ringspan.plan.best import best_layout

        return best_layout(
            tokens,
            pattern,
            block_size,
            world_size=world_size,
            causal=causal,
            documents=documents,
            orderings=orderings,
        )

    @cached_property
    def order(self) -> npt.NDArray[np.int64]:
        """The position stored at each place, int64 `[N]`."""
        along = self.along
        if along is None:
            return np.arange(self.N, dtype=np.int64)
        if along.plain and self.documents is None:
            # One shard is what a pattern along the same ordering asks for, and is found with it.
            shards = (self.world_size, self._own_weights) if self.world_size > 1 else ()
            return order(along.ordering, self.tokens, *shards)
        self._check_restarts(along)
        domain = Domain(self.tokens, 1, 1, order, self.documents)
        return along.tokens_by_place(domain, max(self.N, 1))

    def _check_restarts(self, along: Along) -> None:
        """Refuses what deals tokens to shards, where it would be asked for stretches of them."""
        if self.world_size == 1 or along.fold:
            return
        dealt = order(along.ordering, self.tokens, self.world_size, self._own_weights)
        if not np.array_equal(dealt, order(along.ordering, self.tokens)):
            raise InvalidArgument(
                "ordering",
                expected="one that follows the tokens alone, with documents, axes or a chunk",
                got=f"{along.ordering!r}, which deals all tokens to {self.world_size} ranks",
                remedy="Leave documents, axes and chunk out of the layout; attention still takes "
                "documents",
            )

    @property
    def _own_weights(self) -> tuple[float, ...] | None:
        if self.weights is None and self.sizes != shard_sizes(self.N, self.world_size, None):
            return tuple(float(size) for size in self.sizes)
        return self.weights

    @property
    def contiguous(self) -> bool:
        """Whether every rank's positions precede the next rank's, in ascending order."""
        return self.ordering is None

    @cached_property
    def stored_blocks(self) -> Listed | None:
        """The positions in each block of `block_size` places, in order of place.

        A block lies in one shard, of which the last may be short. None without an ordering or a
        block size: patterns then choose blocks of their own.
        """
        if self.ordering is None or self.block_size is None:
            return None
        return self._blocks(self.block_size)

    def block_numbers(self, block_size: int) -> npt.NDArray[np.int64]:
        """For each position the number of the block that holds it, int64 `[N]`.

        Blocks are `block_size` consecutive places of a shard, of which the last may be short.
        """
        return self._blocks(checked.checked_block_size(block_size)).numbers(self.N)

    def _blocks(self, block_size: int) -> Listed:
        starts = [np.arange(a, b, block_size, dtype=np.int64) for a, b in pairwise(self.bounds)]
        return Listed(self.order, np.append(np.concatenate(starts), self.N))

    def positions(self, rank: int) -> Int[Tensor, " n"]:
        """The positions that `rank` holds, in storage order: int64, on the CPU.

        These are what rotary embeddings and causality go by.
        """
        if torch.compiler.is_compiling():
            rank = checked.checked_rank(rank, self.world_size)
            there: Tensor = _storage_order(self.text, self.N)[0]
            return there[self.bounds[rank] : self.bounds[rank + 1]]
        return torch.from_numpy(self._held(rank).copy())

    def coordinates(self, rank: int) -> Int[Tensor, "n axes"]:
        """The coordinates of the tokens that `rank` holds, in storage order: int64, on the CPU.

        Raises:
            InvalidArgument: the tokens are a plain sequence; or there is no such rank.
        """
        points = self.tokens.coordinates
        if points is None:
            raise InvalidArgument(
                "tokens", expected="Grid or Coordinates", got=f"{self.tokens!r}, without any"
            )
        return torch.from_numpy(points[self._held(rank)])

    def _held(self, rank: int) -> npt.NDArray[np.int64]:
        rank = checked.checked_rank(rank, self.world_size)
        return self.order[self.bounds[rank] : self.bounds[rank + 1]]

    def arrange(self, x: Tensor, *, dim: int = 1) -> Tensor:
        """A full tensor in storage order, from order of position.

        Exact, and so is its gradient. Do it once, outside the layers. Without an ordering this
        is `x` itself.

        Args:
            x: holds all `N` tokens along `dim`, in order of position; any device and dtype.
            dim: the dimension of tokens; 1 as in `[B, N, ...]`.

        Example:
            >>> import torch
            >>> layout = Layout(4, 2, "zigzag")
            >>> x = torch.tensor([[10, 11, 12, 13]])
            >>> layout.arrange(x).tolist(), layout.restore(layout.arrange(x)).tolist()
            ([[10, 13, 11, 12]], [[10, 11, 12, 13]])
        """
        check_tokens(x, self.N, dim)
        return x if self.contiguous else permuted(x, *self._indices(x.device), dim)

    def restore(self, x: Tensor, *, dim: int = 1) -> Tensor:
        """A full tensor in order of position, from storage order: undoes `arrange`.

        Args:
            x: holds all `N` tokens along `dim`, in storage order; any device and dtype.
            dim: the dimension of tokens.
        """
        check_tokens(x, self.N, dim)
        return x if self.contiguous else permuted(x, *self._indices(x.device)[::-1], dim)

    def _indices(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """The position at each place, and the place of each position; copied to a device once."""
        if torch.compiler.is_compiling():
            there, back = _storage_order(self.text, self.N)
            return there.to(device), back.to(device)
        if device not in self._on_devices:
            there = torch.from_numpy(self.order.copy())
            back = torch.empty_like(there)
            back[there] = torch.arange(self.N)
            self._on_devices[device] = there.to(device), back.to(device)
        return self._on_devices[device]

    @cached_property
    def _on_devices(self) -> dict[torch.device, tuple[Tensor, Tensor]]:
        return {}

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

    def _make_text(self) -> str:
        """Names this layout, but for a plain sequence's length, where only text may go."""
        tokens = "None" if isinstance(self.tokens, Sequence) else self.tokens.text
        documents = "None" if self.documents is None else self.documents.text
        along = self.along
        ordering = (
            "None"
            if along is None
            else f"({along.ordering!r}, {along.fold!r}, {along.axes!r}, {along.chunk!r})"
        )
        return (
            f"({tokens}, {self.world_size!r}, {ordering}, {self.weights!r}, "
            f"{self.explicit_sizes!r}, {documents}, {self.block_size!r})"
        )

    @staticmethod
    def from_literal(literal: Any, N: int) -> Layout:
        """The inverse of `text`, after `ast.literal_eval`; `N` is the length of a sequence."""
        tokens, world_size, along, weights, sizes, documents, block_size = literal
        return Layout(
            tokens_from(tokens) or Sequence(N),
            world_size,
            None if along is None else Along(*along),
            weights,
            sizes=sizes,
            documents=None if documents is None else Documents.find(documents[1]),
            block_size=block_size,
        )

    def laid_over(self, tokens: Tokens) -> Layout:
        """The same layout of as many other tokens."""
        return Layout(
            tokens,
            self.world_size,
            self.along,
            self.weights,
            sizes=self.explicit_sizes,
            documents=self.documents,
            block_size=self.block_size,
            reason=self.reason,
        )

    def _key(self) -> tuple[Any, ...]:
        stored = None if self.along is None else (self.along, self.documents, self.block_size)
        return (self.tokens, self.world_size, stored, self.weights, self.sizes)

    def __reduce__(self) -> tuple[Any, ...]:
        # Built again: copies of Coordinates have handles of their own, which the text names.
        options = (self.explicit_sizes, self.documents, self.block_size, self.reason)
        return (_rebuilt, (self.tokens, self.world_size, self.along, self.weights, *options))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __repr__(self) -> str:
        what = self.N if isinstance(self.tokens, Sequence) else self.tokens
        return f"Layout({what!r}, world_size={self.world_size}{self._stored}, sizes={self.sizes})"

    @property
    def _stored(self) -> str:
        """How tokens are ordered, for readers and for ranks to compare."""
        along = self.along
        if along is None:
            return ""
        said = f", ordering={along.ordering if along.plain else along!r}"
        if self.documents is not None:
            said += f", documents={self.documents!r}"
        return said if self.block_size == _BLOCK_SIZE else f"{said}, block_size={self.block_size}"


def _rebuilt(
    tokens: Tokens,
    world_size: int,
    along: Along | None,
    weights: tuple[float, ...] | None,
    sizes: tuple[int, ...] | None,
    documents: Documents | None,
    block_size: int | None,
    reason: str,
) -> Layout:
    return Layout(
        tokens,
        world_size,
        along,
        weights,
        sizes=sizes,
        documents=documents,
        block_size=block_size,
        reason=reason,
    )


# One operator, because orderings live on the host, where `torch.compile` cannot follow.
@torch.library.custom_op("ringspan::storage_order", mutates_args=())
def _storage_order(layout: str, N: int) -> tuple[Tensor, Tensor]:
    there, back = _read(layout, N)._indices(torch.device("cpu"))
    # What an operator returns is its own.
    return there.clone(), back.clone()


@_storage_order.register_fake
def _(layout: str, N: int) -> tuple[Tensor, Tensor]:
    return torch.empty(N, dtype=torch.int64), torch.empty(N, dtype=torch.int64)


@lru_cache(maxsize=64)
def _read(layout: str, N: int) -> Layout:
    return Layout.from_literal(ast.literal_eval(layout), N)
