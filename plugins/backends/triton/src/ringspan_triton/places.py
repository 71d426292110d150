"""Rows of whole tensors, read and written where they lie."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

from typing import NamedTuple

import triton.language as tl
from torch import Tensor

from ringspan_triton.interpreting import INTERPRETED, device

__all__ = [
    "Lying",
    "Places",
    "add_rows",
    "load_rows",
    "load_scalars",
    "row_numbers",
    "store_rows",
    "store_scalars",
]


class Lying(NamedTuple):
    """A tensor, and its strides by sequence, row and head; the last stride is 1.

    Of numbers there is one for each row, and no last stride.
    """

    x: Tensor
    strides: tuple[int, int, int]


class Places(NamedTuple):
    """Row `l` of head `k` in tile `t` is `start + t * tile + k * head + l * step`: the number of
    the row, or with `numbers` where that number stands in it."""

    numbers: Tensor | None
    start: int
    tile: int
    head: int
    step: int


@device
def row_numbers(places, tile, head, row, inside):
    """The rows `row` of a tile, as rows of the whole tensor; what is not `inside` is not read."""
    number = places.start + tile * places.tile + head * places.head + row * places.step
    if places.numbers is not None:
        number = tl.load(places.numbers + number, mask=inside, other=0)
    return number.to(tl.int64)


@device
def _pointers(of, batch, head, rows, WIDTH: tl.constexpr):
    start = of.x + batch * of.strides[0] + head * of.strides[2]
    return start + rows[:, None] * of.strides[1] + tl.arange(0, WIDTH)[None, :]


@device
def _within(inside, D: tl.constexpr, WIDTH: tl.constexpr):
    within = inside[:, None]
    if D != WIDTH:
        within = within & (tl.arange(0, WIDTH) < D)[None, :]
    return within


@device
def load_rows(of, batch, head, rows, inside, D: tl.constexpr, WIDTH: tl.constexpr):
    """Rows of one head, `[rows, WIDTH]`; zero outside."""
    at = _pointers(of, batch, head, rows, WIDTH)
    block = tl.load(at, mask=_within(inside, D, WIDTH), other=0.0)
    if INTERPRETED and block.dtype.primitive_bitwidth == 16:
        block = block.to(tl.float32)
    return block


@device
def load_scalars(of, batch, head, rows, inside, other):
    """One number of each row."""
    start = of.x + batch * of.strides[0] + head * of.strides[2]
    return tl.load(start + rows * of.strides[1], mask=inside, other=other)


@device
def store_scalars(of, batch, head, rows, inside, numbers):
    """Writes one number of each row."""
    start = of.x + batch * of.strides[0] + head * of.strides[2]
    tl.store(start + rows * of.strides[1], numbers, mask=inside)


@device
def store_rows(of, batch, head, rows, inside, block, D: tl.constexpr, WIDTH: tl.constexpr):
    """Writes rows of one head, rounded to the dtype of the tensor."""
    at = _pointers(of, batch, head, rows, WIDTH)
    tl.store(at, _rounded(block, of.x.dtype.element_ty), mask=_within(inside, D, WIDTH))


@device
def add_rows(of, batch, head, rows, inside, block, D: tl.constexpr, WIDTH: tl.constexpr):
    """Adds to rows of one head; no other program does so."""
    before = load_rows(of, batch, head, rows, inside, D, WIDTH)
    block += before.to(block.dtype)
    store_rows(of, batch, head, rows, inside, block, D, WIDTH)


@device
def _rounded(block, DTYPE: tl.constexpr):
    if INTERPRETED and tl.bfloat16 == DTYPE:
        # The interpreter cuts bits off: round to the nearest, ties to even, before it does.
        bits = block.to(tl.float32).to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
        block = tl.where(block == block, bits.to(tl.float32, bitcast=True), block)
    return block.to(DTYPE)
