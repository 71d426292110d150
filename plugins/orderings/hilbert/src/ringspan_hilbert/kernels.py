"""Keys by kernels written in Triton: the same integers as in torch, in one pass over the points.

Importing this module imports triton.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl

from ringspan_hilbert.box import Box
from ringspan_hilbert.gilbert import Parts, levels_of_word
from ringspan_hilbert.interleave import bits_of_word

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["gilbert_keys", "interleaved_keys"]

BLOCK = 256
"""Points per program."""


def interleaved_keys(box: Box, word: int, *, hilbert: bool) -> Int[Tensor, " N"]:
    """One int64 word of the points' keys along Hilbert's curve, or else Morton's."""
    low, high = bits_of_word(word, box.bits, len(box.axes))
    keys = _new_keys(box)
    with torch.cuda.device_of(keys):
        _interleaved_kernel[_programs(keys)](
            *_three(box),
            keys,
            len(keys),
            AXES=len(box.axes),
            BITS=box.bits - low,
            LOW=low,
            HIGH=high,
            HILBERT=hilbert,
            BLOCK=BLOCK,
        )
    return keys


def gilbert_keys(box: Box, parts: Parts, word: int) -> Int[Tensor, " N"]:
    """One int64 word of the points' keys along the curve through `parts`, on the same device."""
    first, last = levels_of_word(word, parts)
    keys = _new_keys(box)
    with torch.cuda.device_of(keys):
        _gilbert_kernel[_programs(keys)](
            *_three(box),
            keys,
            len(keys),
            parts.cuts,
            parts.steps,
            parts.corners,
            parts.cuts.shape[1],
            AXES=len(box.axes),
            FIRST=first,
            LAST=last,
            DIGIT_BITS=parts.digit_bits,
            BLOCK=BLOCK,
        )
    return keys


def _new_keys(box: Box) -> Tensor:
    return torch.zeros(box.axes[0].shape, dtype=torch.int64, device=box.axes[0].device)


def _programs(keys: Tensor) -> tuple[int]:
    # No program at all cannot be launched.
    return (max(triton.cdiv(len(keys), BLOCK), 1),)


def _three(box: Box) -> list[Tensor]:
    """Kernels take three axes and look at as many as there are."""
    axes = [axis.contiguous() for axis in box.axes]
    return [*axes, axes[0], axes[0]][:3]


@triton.jit
def _interleaved_kernel(
    x,
    y,
    z,
    keys,
    N,
    AXES: tl.constexpr,
    BITS: tl.constexpr,
    LOW: tl.constexpr,
    HIGH: tl.constexpr,
    HILBERT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    a = tl.load(x + at, mask=inside, other=0) >> LOW
    b = tl.load(y + at, mask=inside, other=0) >> LOW
    c = tl.load(z + at, mask=inside, other=0) >> LOW
    if HILBERT:
        for step in range(BITS - 1):
            bit = BITS - 1 - step
            a = a ^ (-((a >> bit) & 1) & ((1 << bit) - 1))
            if AXES > 1:
                a, b = _turned(a, b, bit)
            if AXES > 2:
                a, c = _turned(a, c, bit)
        # Gray code: what lies where becomes a count, by the parity of the bits above.
        last = a
        if AXES > 1:
            b = b ^ a
            last = b
        if AXES > 2:
            c = c ^ b
            last = c
        carry = last >> 1
        carry = carry ^ (carry >> 1)
        carry = carry ^ (carry >> 2)
        carry = carry ^ (carry >> 4)
        carry = carry ^ (carry >> 8)
        carry = carry ^ (carry >> 16)
        a = a ^ carry
        b = b ^ carry
        c = c ^ carry
    key = tl.zeros([BLOCK], tl.int64)
    for step in range(HIGH - LOW):
        bit = HIGH - LOW - 1 - step
        key = (key << 1) | ((a >> bit) & 1)
        if AXES > 1:
            key = (key << 1) | ((b >> bit) & 1)
        if AXES > 2:
            key = (key << 1) | ((c >> bit) & 1)
    tl.store(keys + at, key, mask=inside)


@triton.jit
def _turned(first, axis, bit):
    """An upper half mirrors the first axis, a lower half swaps this axis with the first."""
    below = (1 << bit) - 1
    upper = -((axis >> bit) & 1) & below
    swap = (first ^ axis) & (below ^ upper)
    return first ^ swap ^ upper, axis ^ swap


@triton.jit
def _gilbert_kernel(
    x,
    y,
    z,
    keys,
    N,
    cuts,
    steps,
    corners,
    S,
    AXES: tl.constexpr,
    FIRST: tl.constexpr,
    LAST: tl.constexpr,
    DIGIT_BITS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < N
    a = tl.load(x + at, mask=inside, other=0)
    b = tl.load(y + at, mask=inside, other=0)
    c = tl.load(z + at, mask=inside, other=0)
    shape = tl.zeros([BLOCK], tl.int32)
    key = tl.zeros([BLOCK], tl.int64)
    for level in range(LAST):
        lower = (a < tl.load(cuts + shape)).to(tl.int32)
        if AXES > 1:
            lower += (b < tl.load(cuts + S + shape)).to(tl.int32) << 1
        if AXES > 2:
            lower += (c < tl.load(cuts + 2 * S + shape)).to(tl.int32) << 2
        part = (shape << AXES) + lower
        a -= tl.load(corners + part)
        if AXES > 1:
            b -= tl.load(corners + (S << AXES) + part)
        if AXES > 2:
            c -= tl.load(corners + (2 * S << AXES) + part)
        step = tl.load(steps + part)
        shape = step >> 3
        if level >= FIRST:
            key = (key << DIGIT_BITS) | (step & 7)
    tl.store(keys + at, key, mask=inside)
