"""Random masks of every kind, and what they mean, read from their definition by the letter."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from ringspan.contracts import ActiveBlocks, Mask, MaskCase

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["drawn_blocks", "drawn_mask", "drawn_padding", "placed", "restricted", "visible"]


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
    if mask.blocks is not None:
        return _visible_blocks(mask.blocks)
    if mask.case is MaskCase.CAUSAL:
        return key <= torch.arange(queries)[:, None]
    if mask.case is MaskCase.INTERVAL and mask.low is not None and mask.high is not None:
        return (mask.low.cpu()[..., None] <= key) & (key < mask.high.cpu()[..., None])
    if mask.case is MaskCase.BITMAP and mask.seen is not None:
        return mask.seen.cpu()
    return torch.ones(queries, keys, dtype=torch.bool)


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


def restricted(mask: Mask, keys: slice, case: MaskCase) -> Mask:
    """The mask over some of the keys; `case` is what it is there."""

    def bound(x: Tensor | None) -> Tensor | None:
        return None if x is None else (x - keys.start).clamp(0, keys.stop - keys.start)

    def part(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[..., keys]

    return Mask(case, bound(mask.low), bound(mask.high), part(mask.seen), part(mask.key_seen))
