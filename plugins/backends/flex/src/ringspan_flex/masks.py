"""Masks as FlexAttention takes them: a function of positions over captured tensors, and blocks.

The tensors are captured and not their values, so that one compiled kernel serves all masks of a
kind. What was made for a mask is kept as long as the same tensors come, unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Lengths, Mask, MaskCase

from ringspan_flex.blocks import BLOCK, bitmap_blocks, interval_blocks, padding_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Bool, Int, Shaped
    from torch import Tensor
    from torch.nn.attention.flex_attention import BlockMask

    from ringspan_flex.blocks import Blocks

    Seen = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

__all__ = ["Sizes", "block_mask", "kind"]

KEPT = 32
"""Masks that are kept, with their tensors: those of a few layers that take turns."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """What a mask applies to."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    device: torch.device

    @property
    def special(self) -> tuple[bool, ...]:
        """What the compiler takes for a constant, and would compile again for another value.

        Sizes of one (here and of what is counted in blocks), and equal ones.
        """
        return (
            self.batch == 1,
            self.queries == 1,
            self.keys == 1,
            self.queries <= BLOCK,
            self.keys <= BLOCK,
            self.queries == self.keys,
        )


def kind(mask: Mask) -> str:
    """What of a mask is compiled in and not read from its tensors, the axes they share included.

    Example:
        >>> row = torch.arange(4)
        >>> kind(Mask(MaskCase.INTERVAL, low=0 * row, high=row.expand(2, 1, 4)))
        'interval, low: one batch one head, high: one head'
    """
    said = [str(_compiled_case(mask))]
    for name, x, dims in (
        ("low", mask.low, 3),
        ("high", mask.high, 3),
        ("seen", mask.seen, 4),
        ("key_seen", mask.key_seen, 3),
    ):
        if x is not None:
            batch, heads = _aligned(x, dims).shape[:2]
            shared = (" one batch" if batch == 1 else "") + (" one head" if heads == 1 else "")
            said.append(f"{name}:{shared}")
    return ", ".join(said)


def block_mask(mask: Mask, sizes: Sizes) -> BlockMask | None:
    """The mask for tensors of these sizes; None: everything is seen."""
    if _compiled_case(mask) is MaskCase.FULL and mask.key_seen is None:
        return None
    given = (mask.low, mask.high, mask.seen, mask.key_seen)
    bounds = (mask.lengths.query_bounds, mask.lengths.key_bounds) if mask.lengths else ()
    tensors = tuple(None if x is None else _Unchanged(x) for x in (*given, *bounds))
    return _made(mask.case, mask.left, mask.right, tensors, sizes)


def _compiled_case(mask: Mask) -> MaskCase:
    """Bands and tiles of many lengths are intervals too: their numbers are not compiled in."""
    interval = mask.case is MaskCase.BAND or mask.lengths is not None
    return MaskCase.INTERVAL if interval else mask.case


class _Unchanged:
    """A tensor as a key: itself, as long as nothing writes into it."""

    __slots__ = ("tensor", "version")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.version = 0 if tensor.is_inference() else tensor._version

    def __hash__(self) -> int:
        return id(self.tensor)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Unchanged)
            and self.tensor is other.tensor
            and self.version == other.version
        )


@lru_cache(maxsize=KEPT)
def _made(
    case: MaskCase, left: int, right: int, tensors: tuple[_Unchanged | None, ...], sizes: Sizes
) -> BlockMask:
    low, high, seen, key_seen, *bounds = (x.tensor if x is not None else None for x in tensors)
    mask = Mask(case, low, high, seen, key_seen, left=left, right=right)
    if bounds:
        query_bounds, key_bounds = bounds
        assert query_bounds is not None
        assert key_bounds is not None
        mask = replace(mask, lengths=Lengths(query_bounds, key_bounds, 0, 0))
    shown, blocks = _shown(mask, sizes)
    if key_seen is not None:
        real = _aligned(key_seen, 3).expand(-1, -1, sizes.keys).contiguous()
        if real.shape[1] > 1:
            real = real.repeat_interleave(sizes.heads // sizes.kv_heads, 1)
        blocks = blocks & padding_blocks(real)
        shown = _both(shown, _real(real.expand(sizes.batch, sizes.heads, -1)))
    return blocks.block_mask(shown, sizes.queries, sizes.keys)


def _shown(mask: Mask, sizes: Sizes) -> tuple[Seen, Blocks]:
    """What the mask shows without its padding, as a function and as blocks."""
    shape = (sizes.batch, sizes.heads, sizes.queries)
    if mask.case is MaskCase.BITMAP:
        assert mask.seen is not None
        seen = _aligned(mask.seen, 4).expand(-1, -1, sizes.queries, sizes.keys).contiguous()
        return _bitmap(seen.expand(*shape, sizes.keys)), bitmap_blocks(seen)
    low, high = _bounds(mask, sizes)
    blocks = interval_blocks(low, high, sizes.keys)
    if _compiled_case(mask) is MaskCase.INTERVAL:
        return _interval(low.expand(shape), high.expand(shape)), blocks
    return (_causal if mask.case is MaskCase.CAUSAL else _everything), blocks


def _bounds(mask: Mask, sizes: Sizes) -> tuple[Int[Tensor, "#B #H Lq"], Int[Tensor, "#B #H Lq"]]:
    """The keys that each row sees, in int32, for every mask that is no bitmap."""
    row = torch.arange(sizes.queries, device=sizes.device)
    low, high = torch.zeros_like(row), torch.full_like(row, sizes.keys)
    if mask.lengths is not None:
        low, high = _ragged_bounds(mask, mask.lengths, row)
    elif mask.case is MaskCase.CAUSAL:
        high = row + 1
    elif mask.case is not MaskCase.FULL:
        band = mask.case is MaskCase.BAND
        said = mask.as_interval(sizes.queries, sizes.keys, sizes.device) if band else mask
        assert said.low is not None
        assert said.high is not None
        low, high = said.low, said.high
    low, high = (
        _aligned(x, 3).expand(-1, -1, sizes.queries).to(torch.int32).contiguous()
        for x in (low, high)
    )
    return low, high


def _ragged_bounds(
    mask: Mask, lengths: Lengths, row: Int[Tensor, " Lq"]
) -> tuple[Int[Tensor, " Lq"], Int[Tensor, " Lq"]]:
    """Rows see the keys of their own tile, and in a triangle no later ones."""
    query_bounds, key_bounds = lengths.query_bounds.long(), lengths.key_bounds.long()
    tile = torch.searchsorted(query_bounds, row, right=True) - 1
    low = key_bounds[tile]
    if mask.case is MaskCase.CAUSAL:
        return low, low + row - query_bounds[tile] + 1
    return low, key_bounds[tile + 1]


def _aligned(x: Shaped[Tensor, "*axes"], dims: int) -> Shaped[Tensor, "*#aligned"]:
    return x[(None,) * (dims - x.dim())]


def _everything(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= 0


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _interval(low: Int[Tensor, "B H Lq"], high: Int[Tensor, "B H Lq"]) -> Seen:
    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (low[batch, head, query] <= key) & (key < high[batch, head, query])

    return seen


def _bitmap(table: Bool[Tensor, "B H Lq Lk"]) -> Seen:
    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return table[batch, head, query, key]

    return seen


def _real(key_seen: Bool[Tensor, "B H Lk"]) -> Seen:
    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key_seen[batch, head, key]

    return seen


def _both(one: Seen, other: Seen) -> Seen:
    def seen(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return one(batch, head, query, key) & other(batch, head, query, key)

    return seen
