"""Which probabilities dropout keeps: `ringspan.contracts.dropout`, inside a kernel."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

from typing import NamedTuple

import triton.language as tl
from torch import Tensor

from ringspan_triton.interpreting import device

__all__ = ["Drawing", "is_kept", "key_words", "query_words"]


class Drawing(NamedTuple):
    """What the kernels need to draw a mask of dropout."""

    query_positions: Tensor
    query_strides: tuple[int, int, int]
    """By sequence, query head and row."""
    key_positions: Tensor
    key_strides: tuple[int, int, int]
    """By sequence, query head and row."""
    batch: Tensor | None
    """Number of each sequence; None: they are counted from 0."""
    heads: Tensor | None
    """Number of each query head, likewise."""
    seed_low: int
    seed_high: int
    threshold: int
    share: float
    """What a probability that is kept is multiplied with."""


@device
def _mixed(x):
    x = x ^ (x >> 16)
    x = x * 0x7FEB352D
    x = x ^ (x >> 15)
    x = x * 0x846CA68B
    return x ^ (x >> 16)


@device
def query_words(drawing, batch, head, rows, inside):
    """One word for each query: `row(i)` of the contract."""
    strides = drawing.query_strides
    at = drawing.query_positions + batch * strides[0] + head * strides[1] + rows * strides[2]
    position = tl.load(at, mask=inside, other=0).to(tl.uint32)
    if drawing.batch is not None:
        batch = tl.load(drawing.batch + batch)
    if drawing.heads is not None:
        head = tl.load(drawing.heads + head)
    high = drawing.seed_high.to(tl.uint32) + batch.to(tl.uint32) * 0x9E3779B1
    stream = _mixed(drawing.seed_low.to(tl.uint32) ^ _mixed(high))
    return _mixed(_mixed(stream + head.to(tl.uint32) * 0x85EBCA77) + position)


@device
def key_words(drawing, batch, head, rows, inside):
    """One word for each key: `j * 0xC2B2AE3D` of the contract."""
    strides = drawing.key_strides
    at = drawing.key_positions + batch * strides[0] + head * strides[1] + rows * strides[2]
    return tl.load(at, mask=inside, other=0).to(tl.uint32) * 0xC2B2AE3D


@device
def is_kept(drawing, query_word, key_word):
    """Whether each pair is kept, for words that broadcast against each other."""
    word = _mixed(_mixed(query_word + key_word) ^ query_word)
    return word >= drawing.threshold.to(tl.uint32)
