"""Which blocks of 128 keys the blocks of 128 queries see: found from bounds, not pair by pair."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Int
    from torch import Tensor

__all__ = ["BLOCK", "Blocks", "bitmap_blocks", "interval_blocks", "padding_blocks"]

BLOCK = 128
"""The block size that FlexAttention's own masks have."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Pairs of a block of queries and a block of keys."""

    some: Bool[Tensor, "#B #H queries keys"]
    """False: no query of the one sees a key of the other."""
    every: Bool[Tensor, "#B #H queries keys"]
    """True: both blocks are whole, and every query sees every key."""

    def __and__(self, other: Blocks) -> Blocks:
        """The blocks of what both masks show."""
        return Blocks(self.some & other.some, self.every & other.every)

    def block_mask(
        self, seen: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], queries: int, keys: int
    ) -> BlockMask:
        """The blocks as FlexAttention takes them; `seen` decides in those that are seen in part."""
        partial = _ordered(self.some & ~self.every)
        whole = _ordered(self.every)
        return BlockMask.from_kv_blocks(
            *partial, *whole, BLOCK_SIZE=BLOCK, mask_mod=seen, seq_lengths=(queries, keys)
        )


def interval_blocks(
    low: Int[Tensor, "#B #H Lq"], high: Int[Tensor, "#B #H Lq"], keys: int
) -> Blocks:
    """The blocks of rows that see the keys `low .. high - 1`."""
    low, high = low.clamp(0, keys), high.clamp(0, keys)
    empty = low >= high
    first = _by_block(low.masked_fill(empty, keys), keys).amin(-1)
    last = _by_block(high.masked_fill(empty, 0), 0).amax(-1)
    latest_low, earliest_high = _by_block(low, keys).amax(-1), _by_block(high, 0).amin(-1)
    start = BLOCK * torch.arange(-(-keys // BLOCK), device=low.device)
    return Blocks(
        some=(start < last[..., None]) & (start + BLOCK > first[..., None]),
        every=(start >= latest_low[..., None]) & (start + BLOCK <= earliest_high[..., None]),
    )


def bitmap_blocks(seen: Bool[Tensor, "#B #H Lq Lk"]) -> Blocks:
    """The blocks of a bitmap."""
    queries, keys = seen.shape[-2:]
    blocks = pad(seen, (0, -keys % BLOCK, 0, -queries % BLOCK))
    blocks = torch.unflatten(torch.unflatten(blocks, 3, (-1, BLOCK)), 2, (-1, BLOCK))
    blocks = blocks.transpose(3, 4)
    return Blocks(blocks.flatten(-2).any(-1), blocks.flatten(-2).all(-1))


def padding_blocks(key_seen: Bool[Tensor, "#B #H Lk"]) -> Blocks:
    """The blocks of keys of which some are padding, for all queries."""
    blocks = torch.unflatten(pad(key_seen, (0, -key_seen.shape[-1] % BLOCK)), -1, (-1, BLOCK))
    return Blocks(blocks.any(-1)[:, :, None], blocks.all(-1)[:, :, None])


def _by_block(x: Int[Tensor, "#B #H L"], beyond: int) -> Int[Tensor, "#B #H blocks 128"]:
    return torch.unflatten(pad(x, (0, -x.shape[-1] % BLOCK), value=beyond), -1, (-1, BLOCK))


def _ordered(
    dense: Bool[Tensor, "#B #H queries keys"],
) -> tuple[Int[Tensor, "#B #H queries"], Int[Tensor, "#B #H queries keys"]]:
    """How many blocks of keys each block of queries has, and which, ascending and first."""
    order = torch.argsort(dense.to(torch.int8), dim=-1, descending=True, stable=True)
    return dense.sum(-1, dtype=torch.int32), order.to(torch.int32)
