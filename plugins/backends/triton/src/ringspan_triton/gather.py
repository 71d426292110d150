"""Rows of several tensors, contiguous, in one launch: for kernels that take no strides.

Only bytes are moved: a kernel sees integers as wide as the elements.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from ringspan.contracts.adapters.arguments import with_last_stride_one
from ringspan.contracts.work import Affine, Indexed

from ringspan_triton.descriptors import current, table, unit
from ringspan_triton.interpreting import device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Shaped
    from ringspan.contracts.branch import Placed
    from torch import Tensor

__all__ = ["gather"]

AT_ONCE = 8
"""Most tensors of one launch; all that a backward pass gathers fit."""
ELEMENTS = 8192
"""Of one program: 16 KiB of 16-bit elements."""
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

FIELDS = tl.constexpr(16)
(START, TILE_STEP, HEAD_STEP, STEP, INDEXED, BATCH_TILES, TILES, LENGTH, GROUPS, GROUP) = (
    tl.constexpr(field) for field in range(10)
)
(WIDTH, OF_BATCH, OF_ROW, OF_HEAD, HEADS) = (tl.constexpr(field) for field in range(10, 15))


def gather(*placed: Placed) -> tuple[Shaped[Tensor, "B*T L K*G D"], ...]:
    """The rows as contiguous tensors, in one launch for up to eight of them of one width.

    Args:
        placed: selections of rows, and the tensors `[B, N, H, D]` on one device that they are of.
            A last stride other than 1 costs a copy.

    Returns:
        New tensors, in the order of `placed`.

    Example:
        >>> from ringspan.contracts import Placed
        >>> from ringspan.contracts.selection import Selection
        >>> every_other = Selection(Affine(0, 1, 0, 2), (0,), tiles=2, length=3)
        >>> (found,) = gather(Placed(every_other, torch.arange(6.0).reshape(1, 6, 1, 1)))
        >>> found.flatten(1)
        tensor([[0., 2., 4.],
                [1., 3., 5.]])
    """
    gathered = [_empty(one) for one in placed]
    there = [number for number, x in enumerate(gathered) if x.numel()]

    def size(number: int) -> int:
        return gathered[number].element_size()

    for _, alike in groupby(sorted(there, key=size), key=size):
        numbers = list(alike)
        for first in range(0, len(numbers), AT_ONCE):
            some = numbers[first : first + AT_ONCE]
            _launch([placed[number] for number in some], [gathered[number] for number in some])
    return tuple(gathered)


def _empty(placed: Placed) -> Tensor:
    rows, x = placed
    shape = (x.shape[0] * rows.tiles, rows.length, len(rows.heads) * rows.group, x.shape[-1])
    return torch.empty(shape, dtype=x.dtype, device=x.device)


def _launch(placed: Sequence[Placed], targets: Sequence[Tensor]) -> None:
    word = WORDS[targets[0].element_size()]
    sources = tuple(with_last_stride_one(x.detach()).view(word) for _, x in placed)
    where = targets[0].device
    step = unit(*(n for x in sources for n in (*x.stride()[:-1], x.shape[-1])))
    descriptors = table(_descriptors(placed, sources, step), where)
    indices = tuple(
        rows.rows.on(where) if isinstance(rows.rows, Indexed) else descriptors for rows, _ in placed
    )
    width = triton.next_power_of_2(max(x.shape[-1] for x in targets))
    longest = triton.next_power_of_2(max(x.shape[1] for x in targets))
    some = min(longest, max(1, ELEMENTS // width))
    programs = max(x.shape[0] * -(-x.shape[1] // some) * x.shape[2] for x in targets)
    with current(targets[0]):
        _gather[(programs, len(targets))](
            descriptors,
            indices,
            sources,
            tuple(x.view(word) for x in targets),
            COUNT=len(targets),
            UNIT=step,
            ROWS=some,
            COLUMNS=width,
        )


def _descriptors(placed: Sequence[Placed], sources: Sequence[Tensor], step: int) -> tuple[int, ...]:
    """A line of `FIELDS` numbers for each, and behind them all their heads."""
    lines: list[int] = []
    heads: list[int] = []
    for (rows, _), x in zip(placed, sources, strict=True):
        if isinstance(rows.rows, Affine):
            affine = rows.rows
            reach = (affine.start, affine.tile_step, affine.head_step, affine.step, 0)
        else:
            _, own, _ = rows.rows.rows.shape
            reach = (0, own * rows.length, rows.length if own > 1 else 0, 1, 1)
        lines += (*reach, x.shape[0] * rows.tiles, rows.tiles, rows.length)
        lines += (len(rows.heads), rows.group, x.shape[-1] // step)
        lines += (stride // step for stride in x.stride()[:-1])
        lines += (len(placed) * FIELDS.value + len(heads), 0)
        heads += rows.heads
    return (*lines, *heads)


@triton.jit
def _gather(
    descriptors,
    indices,
    sources,
    targets,
    COUNT: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    for number in tl.static_range(COUNT):
        if tl.program_id(1) == number:
            _copy(
                descriptors,
                descriptors + number * FIELDS,
                indices[number],
                sources[number],
                targets[number],
                UNIT,
                ROWS,
                COLUMNS,
            )


@device
def _copy(
    descriptors,
    line,
    indices,
    source,
    target,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some rows of one head of one tile. Neighbouring programs write neighbouring heads."""
    tiles, length = tl.load(line + TILES), tl.load(line + LENGTH)
    group = tl.load(line + GROUP)
    heads = tl.load(line + GROUPS) * group
    width = tl.load(line + WIDTH) * UNIT
    program = tl.program_id(0).to(tl.int64)
    head = program % heads
    blocks = (length + ROWS - 1) // ROWS
    block = program // heads
    tile = block // blocks
    row = (block - tile * blocks) * ROWS + tl.arange(0, ROWS)
    there = (row < length) & (tile < tl.load(line + BATCH_TILES))

    number = head // group
    own_head = tl.load(descriptors + tl.load(line + HEADS) + number) + head - number * group
    place = (
        tl.load(line + START)
        + tile % tiles * tl.load(line + TILE_STEP)
        + number * tl.load(line + HEAD_STEP)
        + row * tl.load(line + STEP)
    )
    if tl.load(line + INDEXED) != 0:
        place = tl.load(indices + place, mask=there, other=0)
    start = tile // tiles * tl.load(line + OF_BATCH) + own_head * tl.load(line + OF_HEAD)
    column = tl.arange(0, COLUMNS)
    whole = there[:, None] & (column < width)[None, :]
    read = (start + place * tl.load(line + OF_ROW)) * UNIT
    written = ((tile * length + row) * heads + head) * width
    moved = tl.load(source + read[:, None] + column[None, :], mask=whole)
    tl.store(target + written[:, None] + column[None, :], moved, mask=whole)
