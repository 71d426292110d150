"""Random masks of every kind, and what they mean, read from their definition by the letter."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from ringspan.contracts import ActiveBlocks, Mask, MaskCase
from ringspan.contracts.masks import Lengths

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "banded",
    "drawn_blocks",
    "drawn_mask",
    "drawn_padding",
    "placed",
    "restricted",
    "stretches",
    "visible",
]


def drawn_mask(case: MaskCase, shape: tuple[int, ...], keys: int, draw: torch.Generator) -> Mask:
    """A mask over `keys` keys; `shape` is that of its rows, `[batch, heads, queries]` or less.

    Where there are many rows, some see no key; of a bitmap, no row sees the first key.
    """
    if case is MaskCase.INTERVAL:
        low, high = (torch.randint(keys + 1, shape, generator=draw).sort(-1).values for _ in "lh")
        return Mask(case, low=low // 2, high=high)
    if case is MaskCase.BITMAP:
        seen = torch.rand((*shape, keys), generator=draw) < 0.4
        seen[..., 1:, :][..., -1:, :] = False
        seen[..., 0] = False
        return Mask(case, seen=seen)
    return Mask(case)


def banded(queries: int, keys: int, wider: tuple[int, int]) -> Mask:
    """The narrowest band that shows every query a key, made wider to its left and right."""
    left, right = max(0, queries - keys), max(0, keys - queries)
    return Mask(MaskCase.BAND, left=left + wider[0], right=right + wider[1])


def drawn_padding(shape: tuple[int, int, int], draw: torch.Generator) -> Tensor:
    """Which keys are real, `[batch, heads, keys]`; the last sequence begins with padding."""
    real = torch.rand(shape, generator=draw) < 0.7
    real[-1, :, : shape[-1] // 2] = False
    return real


def drawn_blocks(length: int, draw: torch.Generator) -> ActiveBlocks:
    """Blocks of uneven lengths; some pairs are seen in part, and one block sees nothing."""
    longest = max(1, length // 3)
    bounds = [0]
    while bounds[-1] < length:
        step = int(torch.randint(1, longest + 1, (), generator=draw))
        bounds.append(min(length, bounds[-1] + step))
    count = len(bounds) - 1
    active = torch.rand(count, count, generator=draw) < 0.5
    active[count // 2] = False
    pairs = int(active.sum())
    return ActiveBlocks(
        bounds=np.array(bounds),
        indptr=np.append(0, np.cumsum(active.sum(1).numpy())),
        indices=active.nonzero()[:, 1].numpy(),
        bitmap=torch.randint(-1, 2, (pairs,), generator=draw).numpy(),
        bitmaps=(torch.rand(2, longest, longest, generator=draw) < 0.5).numpy(),
    )


def stretches(tiles: tuple[tuple[int, int], ...], device: torch.device) -> Lengths:
    """Where tiles of so many queries and keys lie, one after the other."""
    queries, keys = ([lengths[side] for lengths in tiles] for side in (0, 1))
    query_bounds, key_bounds = (
        torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)
        for lengths in (queries, keys)
    )
    return Lengths(query_bounds, key_bounds, max(queries), max(keys))


def placed(mask: Mask, device: torch.device, *, turned: bool) -> Mask:
    """The mask on a device; `turned`: with the first axis fastest in memory."""

    def put(x: Tensor | None) -> Tensor | None:
        if x is None:
            return None
        axes = tuple(range(x.dim()))[::-1]
        return (x.permute(axes).contiguous().permute(axes) if turned else x).to(device)

    return replace(
        mask,
        low=put(mask.low),
        high=put(mask.high),
        seen=put(mask.seen),
        key_seen=put(mask.key_seen),
    )


def visible(mask: Mask, queries: int, keys: int) -> Tensor:
    """bool on the CPU, broadcasts to `[B, H, Lq, Lk]`; padding is left to the caller."""
    key = torch.arange(keys)
    if mask.lengths is not None:
        return _visible_stretches(mask, mask.lengths)
    if mask.blocks is not None:
        return _visible_blocks(mask.blocks)
    if mask.case is MaskCase.BAND:
        row = torch.arange(queries)[:, None]
        return (row - mask.left <= key) & (key <= row + mask.right)
    if mask.case is MaskCase.CAUSAL:
        return key <= torch.arange(queries)[:, None]
    if mask.case is MaskCase.INTERVAL and mask.low is not None and mask.high is not None:
        return (mask.low.cpu()[..., None] <= key) & (key < mask.high.cpu()[..., None])
    if mask.case is MaskCase.BITMAP and mask.seen is not None:
        return mask.seen.cpu()
    return torch.ones(queries, keys, dtype=torch.bool)


def _visible_stretches(mask: Mask, lengths: Lengths) -> Tensor:
    """What the mask without its lengths says within each tile, and nothing between tiles."""
    alone = replace(mask, lengths=None)
    queries, keys = lengths.query_bounds.tolist(), lengths.key_bounds.tolist()
    seen = torch.zeros(queries[-1], keys[-1], dtype=torch.bool)
    for (first, last), (start, end) in zip(pairwise(queries), pairwise(keys), strict=True):
        seen[first:last, start:end] = visible(alone, last - first, end - start)
    return seen


def _visible_blocks(blocks: ActiveBlocks) -> Tensor:
    seen = torch.zeros(int(blocks.bounds[-1]), int(blocks.bounds[-1]), dtype=torch.bool)
    bounds = [slice(*ends) for ends in pairwise(blocks.bounds.tolist())]
    for rows, pairs in zip(bounds, pairwise(blocks.indptr.tolist()), strict=True):
        for pair in range(*pairs):
            block = seen[rows, bounds[int(blocks.indices[pair])]]
            number = int(blocks.bitmap[pair])
            bitmap = torch.ones_like(block) if number < 0 else torch.tensor(blocks.bitmaps[number])
            block |= bitmap[: block.shape[0], : block.shape[1]]
    return seen


def restricted(mask: Mask, rows: slice, keys: slice, case: MaskCase) -> Mask:
    """The mask over some of the rows and keys; `case` is what it is there.

    Of a band these are rows of which the first sees the first key, and the last one the last.
    """
    if case is MaskCase.BAND:
        shift = keys.start - rows.start
        part_seen = None if mask.key_seen is None else mask.key_seen[..., keys]
        left, right = mask.left + shift, mask.right - shift
        return Mask(case, key_seen=part_seen, left=left, right=right)

    def bound(x: Tensor | None) -> Tensor | None:
        return None if x is None else (x - keys.start).clamp(0, keys.stop - keys.start)

    def part(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[..., keys]

    return Mask(case, bound(mask.low), bound(mask.high), part(mask.seen), part(mask.key_seen))
