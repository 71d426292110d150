"""Block-sparse attention: pairs of blocks of consecutive tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.pattern import Blocks, Domain, Listed, Part, Pattern, Runs
from ringspan.contracts.tokens import Tokens
from ringspan.patterns.along import Along
from ringspan.patterns.block_sparse_evaluated import EvaluatedBlocks
from ringspan.patterns.block_sparse_kinds import (
    DilatedBlocks,
    LocalBlocks,
    LocalGlobalBlocks,
    SymbolicBlocks,
)
from ringspan.patterns.integers import checked_integer

__all__ = ["BlockSparse"]

_LARGEST_MASK = 65_536


@dataclass(frozen=True)
class BlockSparse(Pattern):
    """Block-sparse attention: `m(i, j) = 1` where `i`'s block sees `j`'s block.

    Blocks are `block_size` consecutive positions, counted from the start of each document; the
    last may be short. Which sees which is said by a builder:

    - `local`, `local_global`, `dilated_blocks`: rules for any number of tokens.
    - `from_blocks`, `from_mask`: predicates, evaluated once for `N` tokens. They serve sequences,
      or documents, of exactly `N` tokens; a mask of coordinates, no others.

    Args:
        block_size: tokens of a block, at least 1.
        blocks: what a builder made.
        along: name of an ordering or `Along`: blocks are consecutive *places* along that curve.
            Causality still compares positions.

    Example:
        >>> import torch, ringspan as rs
        >>> q = k = v = torch.randn(1, 1000, 4, 16)
        >>> pattern = rs.BlockSparse.local_global(64, left=2, right=0, global_blocks=1)
        >>> rs.attention(q, k, v, pattern=pattern, causal=True).shape
        torch.Size([1, 1000, 4, 16])
    """

    documents_at_once: ClassVar[bool] = True

    block_size: int
    blocks: SymbolicBlocks | EvaluatedBlocks
    along: Along | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_size", checked_integer("block_size", self.block_size))
        if not isinstance(self.blocks, (SymbolicBlocks, EvaluatedBlocks)):
            raise InvalidArgument(
                "blocks",
                expected="what BlockSparse.local, .from_blocks or another builder made",
                got=repr(self.blocks),
            )
        object.__setattr__(self, "along", Along.of(self.along))
        if isinstance(self.blocks, EvaluatedBlocks):
            self._check_evaluated(self.blocks)
        super().__post_init__()

    def _check_evaluated(self, blocks: EvaluatedBlocks) -> None:
        if blocks.block_size != self.block_size:
            raise InvalidArgument(
                "block_size",
                expected=f"{blocks.block_size}, for which the blocks were evaluated",
                got=str(self.block_size),
            )
        if self.along is not None and blocks.partial.any():
            raise InvalidArgument(
                "along",
                expected="None with from_mask, whose predicate speaks of positions",
                got=repr(self.along),
            )

    @classmethod
    def local(
        cls, block_size: int, left: int, right: int, *, along: Along | str | None = None
    ) -> BlockSparse:
        """Block `i` sees the blocks `i - left .. i + right`.

        Example:
            >>> BlockSparse.local(64, left=1, right=0)
            BlockSparse(block_size=64, blocks=LocalBlocks(left=1, right=0), along=None)
        """
        return cls(block_size, LocalBlocks(left, right), along)

    @classmethod
    def local_global(
        cls,
        block_size: int,
        left: int,
        right: int,
        global_blocks: int,
        *,
        along: Along | str | None = None,
    ) -> BlockSparse:
        """As `local`, and the first `global_blocks` see all blocks and are seen by all."""
        return cls(block_size, LocalGlobalBlocks(left, right, global_blocks), along)

    @classmethod
    def dilated_blocks(
        cls, block_size: int, reach: int, dilation: int, *, along: Along | str | None = None
    ) -> BlockSparse:
        """Block `i` sees the blocks `i + dilation * t` for every `-reach <= t <= reach`."""
        return cls(block_size, DilatedBlocks(reach, dilation), along)

    @classmethod
    def from_blocks(
        cls,
        block_size: int,
        predicate: Callable[[Any, Any], Any],
        N: int,
        *,
        along: Along | str | None = None,
    ) -> BlockSparse:
        """Block `i` sees block `j` where `predicate(i, j)`.

        Args:
            block_size: tokens of a block.
            predicate: gets int64 arrays of block numbers, `[I, 1]` and `[1, J]`, and gives
                booleans that broadcast to `[I, J]`. One that refuses arrays (a Python `and`, a
                look-up in a set) is called for each pair of numbers.
            N: number of tokens.
            along: as for the pattern.

        Example:
            >>> blocks = BlockSparse.from_blocks(64, lambda i, j: (i + j) % 3 == 0, N=1000).blocks
            >>> blocks.indices[blocks.indptr[1] : blocks.indptr[2]].tolist()
            [2, 5, 8, 11, 14]
        """
        return cls(block_size, EvaluatedBlocks.from_blocks(block_size, predicate, N), along)

    @classmethod
    def from_mask(
        cls,
        block_size: int,
        predicate: Callable[[Any, Any], Any],
        tokens: int | Tokens,
        *,
        limit: int = _LARGEST_MASK,
    ) -> BlockSparse:
        """Query `i` sees key `j` where `predicate(i, j)`.

        The predicate is evaluated for all `N * N` pairs, in chunks. Blocks of which it shows
        nothing are not kept; a bitmap is kept for each block of which it shows a part.

        Args:
            block_size: tokens of a block.
            predicate: for `N` tokens, gets int64 arrays of positions, `[I, 1]` and `[1, J]`. For
                tokens with coordinates, gets those, `[axes, I, 1]` and `[axes, 1, J]`: so
                `row, column = query`. Gives booleans that broadcast to `[I, J]`. One that refuses
                arrays is called for each pair.
            tokens: how many tokens, or a `Grid` or `Coordinates`; a call with other coordinates
                is refused.
            limit: the largest number of tokens to do this for.

        Raises:
            InvalidArgument: there are more tokens than `limit`; or of tokens with coordinates,
                nobody sees anybody.

        Example:
            >>> import ringspan as rs
            >>> disc = rs.BlockSparse.from_mask(
            ...     64, lambda q, k: ((q - k) ** 2).sum(0) <= 9, rs.Grid(32, 32)
            ... )
            >>> disc.blocks.N
            1024
        """
        if isinstance(tokens, Tokens):
            points, N = tokens.coordinates, tokens.N
        else:
            points, N = None, checked_integer("tokens", tokens, least=0)
        if checked_integer("limit", limit, least=0) < N:
            raise InvalidArgument(
                "tokens",
                expected=f"at most {limit:,} tokens: every pair is evaluated",
                got=f"{N:,}",
                remedy="Take a rule of blocks (local, local_global, dilated_blocks, from_blocks), "
                "or a larger limit",
            )
        blocks = EvaluatedBlocks.from_mask(block_size, predicate, N, points)
        if points is not None and N and not len(blocks.indices):
            raise InvalidArgument(
                "predicate",
                expected="one that shows something",
                got=f"False for all pairs of {tokens!r}",
                remedy="It gets coordinates, axes first: row, column = query",
            )
        return cls(block_size, blocks)

    def check(self, domain: Domain) -> None:
        """Raises `InvalidArgument` where blocks were evaluated for other tokens, or for another
        number of them.

        A mask of coordinates may be laid over a plain sequence, and over documents of as many
        tokens: they are taken in the order in which the mask counts them.
        """
        if not isinstance(self.blocks, EvaluatedBlocks):
            return
        lengths = np.unique(domain.lengths[domain.lengths > 0]).tolist()
        if lengths not in ([], [self.blocks.N]):
            what = "tokens" if domain.documents is None else "tokens in every document"
            raise InvalidArgument(
                "pattern",
                expected=f"blocks evaluated for {' and '.join(map(str, lengths[:3]))} {what}",
                got=f"blocks evaluated for {self.blocks.N}",
                remedy="Build the pattern for this length, or take a rule that serves any "
                "(local, local_global, dilated_blocks)",
            )
        if domain.documents is None and not self.blocks.fits(domain.tokens):
            raise InvalidArgument(
                "tokens",
                expected="those for which the pattern's mask was evaluated, or none",
                got=f"{domain.tokens!r}, with other coordinates",
                remedy="Build the pattern for these: BlockSparse.from_mask(.., tokens=..)",
            )

    def parts(self, domain: Domain) -> Iterable[Part]:
        """The pairs of blocks; those of which only a part counts are a part of their own.

        A mask's pairs are put into blocks of storage, where there are such. Rules of blocks keep
        theirs: cut otherwise, hardly a pair would be whole.
        """
        heads, sets = tuple(range(domain.heads)), self._sets(domain)
        if isinstance(self.blocks, SymbolicBlocks):
            counts = -(-domain.lengths // self.block_size)
            number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            yield Blocks(heads, sets, *self.blocks.rows(number, np.repeat(counts, counts)))
            return
        if domain.stored is not None and domain.documents is None and self.blocks.partial.any():
            yield self.blocks.stored(heads, domain.stored)
            return
        starts = domain.starts[domain.lengths > 0]
        for part in self.blocks.parts(heads):
            yield dataclasses.replace(part.shifted(starts), sets=sets)

    def _sets(self, domain: Domain) -> Runs | Listed:
        starts, lengths = domain.segments(self.block_size)
        if not isinstance(self.along, Along):
            return Runs(starts, lengths)
        longest = int(domain.lengths.max(initial=1))
        tokens = self.along.tokens_by_place(domain, longest)
        return Listed.of(tokens, lengths).ascending()
