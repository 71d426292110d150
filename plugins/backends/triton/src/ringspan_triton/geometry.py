"""Where the rows of a batch of tiles lie, and which pairs they leave, as kernels are told."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from ringspan.contracts import InvalidArgument, MaskCase
from ringspan.contracts.adapters.arguments import with_last_stride_one
from ringspan.contracts.work import Affine

from ringspan_triton.descriptors import table
from ringspan_triton.dropping import Drawing
from ringspan_triton.masking import Bitmap, Bounds, Visible
from ringspan_triton.places import Lying, Places

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from ringspan.contracts import ActiveBlocks, Branch, Dropout, Mask
    from ringspan.contracts.selection import Selection
    from torch import Tensor

__all__ = ["Geometry", "lying", "lying_scalars", "number", "of_branch", "of_tiles"]

CASES = {
    MaskCase.FULL: "full",
    MaskCase.CAUSAL: "band",
    MaskCase.BAND: "band",
    MaskCase.INTERVAL: "interval",
    MaskCase.BITMAP: "bitmap",
}


@dataclass(frozen=True, slots=True)
class Geometry:
    """All that kernels are told of a batch of tiles beside its tensors."""

    batch: int
    tiles: int
    group: int
    queries: int
    """Of a tile."""
    keys: int
    query: Places
    key: Places
    query_heads: Int[Tensor, " groups"]
    """First query head of each group."""
    key_heads: Int[Tensor, " groups"]
    case: str
    visible: Visible
    scale: float
    drawing: Drawing | None = None
    blocks: ActiveBlocks | None = None

    @property
    def groups(self) -> int:
        """Groups of query heads that share a key/value head."""
        return len(self.query_heads)


def of_branch(branch: Branch, query: Float[Tensor, "B N H D"]) -> Geometry:
    """The geometry of rows of whole tensors.

    Raises:
        InvalidArgument: a mask without its tensors, or a triangle that is not square.
    """
    rows, keys = branch.query, branch.key
    left, right = _sides(branch.case, branch.left, branch.right, rows.length, keys.length)
    bounds = bitmap = padding = None
    if branch.case is MaskCase.INTERVAL:
        low, high = (_given(name, getattr(branch, name)) for name in ("low", "high"))
        bounds = Bounds(low, _tile_strides(low), high, _tile_strides(high))
    if branch.case is MaskCase.BITMAP:
        seen, which = _given("table", branch.table), _given("which", branch.which)
        number, row, column = seen.stride()
        bitmap = Bitmap(seen.view(torch.uint8), (0, number, 0, 0, row, column), which)
    if branch.key_seen is not None:
        sequence, row = branch.key_seen.stride()
        padding = Lying(branch.key_seen.view(torch.uint8), (sequence, row, 0))
    return Geometry(
        batch=query.shape[0],
        tiles=rows.tiles,
        group=rows.group,
        queries=rows.length,
        keys=keys.length,
        query=_places(rows, query.device),
        key=_places(keys, query.device),
        query_heads=table(rows.heads, query.device),
        key_heads=table(keys.heads, query.device),
        case=CASES[branch.case],
        visible=Visible(left, right, bounds, bitmap, padding),
        scale=branch.scale,
        drawing=_branch_drawing(branch, query.dtype),
    )


def of_tiles(
    query: Float[Tensor, "B Lq H D"],
    key: Float[Tensor, "B Lk Hkv D"],
    mask: Mask,
    scale: float,
    dropout: Dropout | None,
) -> Geometry:
    """The geometry of a batch of tiles that are whole tensors: one tile of each sequence."""
    batch, queries, heads, _ = query.shape
    keys, groups = key.shape[1:3]
    group = heads // groups
    left, right = _sides(mask.case, mask.left, mask.right, queries, keys)
    bounds = bitmap = padding = None
    if mask.case is MaskCase.INTERVAL:
        low, high = (
            _given(name, getattr(mask, name)).broadcast_to(batch, heads, queries)
            for name in ("low", "high")
        )
        bounds = Bounds(low, _head_strides(low, group), high, _head_strides(high, group))
    if mask.case is MaskCase.BITMAP:
        seen = _given("seen", mask.seen).broadcast_to(batch, heads, queries, keys)
        strides = (*_head_strides(seen, group), seen.stride(3))
        bitmap = Bitmap(seen.view(torch.uint8), strides, None)
    if mask.key_seen is not None:
        there = mask.key_seen.broadcast_to(batch, groups, keys)
        padding = lying_scalars(there.view(torch.uint8))
    return Geometry(
        batch=batch,
        tiles=1,
        group=group,
        queries=queries,
        keys=keys,
        query=Places(None, 0, 0, 0, 1),
        key=Places(None, 0, 0, 0, 1),
        query_heads=table(tuple(range(0, heads, group)), query.device),
        key_heads=table(tuple(range(groups)), query.device),
        case=CASES[mask.case] if mask.blocks is None else "blocks",
        visible=Visible(left, right, bounds, bitmap, padding),
        scale=scale,
        drawing=None if dropout is None else _tile_drawing(dropout, query, key),
        blocks=mask.blocks,
    )


def lying(x: Float[Tensor, "B N H D"]) -> Lying:
    """A tensor as kernels read it; copied where its last stride is not 1."""
    x = with_last_stride_one(x)
    batch, row, head, _ = x.stride()
    return Lying(x, (batch, row, head))


def lying_scalars(x: Float[Tensor, "B H N"]) -> Lying:
    """One number for each head and row, as kernels read them."""
    batch, head, row = x.stride()
    return Lying(x, (batch, row, head))


def number(x: float, dtype: torch.dtype) -> float | int:
    """A number for a kernel that computes in `dtype`: Triton would round a float to float32."""
    if dtype == torch.float64:
        (bits,) = struct.unpack("<q", struct.pack("<d", x))
        return int(bits)
    # The interpreter takes what float32 cannot hold for a float64.
    return x if abs(x) >= torch.finfo(torch.float32).tiny else 0.0


def _sides(case: MaskCase, left: int, right: int, queries: int, keys: int) -> tuple[int, int]:
    if case is not MaskCase.CAUSAL:
        return left, right
    if queries != keys:
        raise InvalidArgument(
            "mask",
            expected="as many queries as keys for a causal mask",
            got=f"{queries} queries and {keys} keys",
            remedy="describe a shifted triangle as a band",
        )
    return queries, 0


def _places(rows: Selection, device: torch.device) -> Places:
    if isinstance(rows.rows, Affine):
        affine = rows.rows
        return Places(None, affine.start, affine.tile_step, affine.head_step, affine.step)
    index = rows.rows.on(device)
    tile, head, row = index.stride()
    return Places(index, 0, tile, head if index.shape[1] > 1 else 0, row)


def _given(name: str, x: Tensor | None) -> Tensor:
    if x is None:
        raise InvalidArgument(name, expected="a tensor, with this kind of mask", got="None")
    return x


def _tile_strides(x: Int[Tensor, "T heads Lq"]) -> tuple[int, int, int, int, int]:
    tile, head, row = x.stride()
    return 0, tile, head if x.shape[1] > 1 else 0, 0, row


def _head_strides(x: Tensor, group: int) -> tuple[int, int, int, int, int]:
    """By sequence, tile, group, head of the group, and row."""
    batch, head, row, *_ = x.stride()
    return batch, 0, group * head, head, row


def _three(strides: tuple[int, ...]) -> tuple[int, int, int]:
    first, second, third = strides
    return first, second, third


def _branch_drawing(branch: Branch, dtype: torch.dtype) -> Drawing | None:
    if branch.dropout is None:
        return None
    queries, keys = branch.dropout.query_positions, branch.dropout.key_positions
    return Drawing(
        queries,
        (0, 0, queries.stride(0)),
        keys,
        (0, 0, keys.stride(0)),
        None,
        None,
        *_drawn(branch.dropout.p, branch.dropout.seed, dtype),
    )


def _tile_drawing(dropout: Dropout, query: Tensor, key: Tensor) -> Drawing:
    batch, queries, heads, _ = query.shape
    query_positions = dropout.query_positions.broadcast_to(batch, heads, queries)
    key_positions = dropout.key_positions.broadcast_to(batch, heads, key.shape[1])
    return Drawing(
        query_positions,
        _three(query_positions.stride()),
        key_positions,
        _three(key_positions.stride()),
        dropout.batch.contiguous(),
        dropout.heads.contiguous(),
        *_drawn(dropout.p, dropout.seed, query.dtype),
    )


def _drawn(p: float, seed: int, dtype: torch.dtype) -> tuple[int, int, int, float | int]:
    word = 0xFFFFFFFF
    return seed & word, (seed >> 32) & word, int(p * 2**32), number(1 / (1 - p), dtype)
