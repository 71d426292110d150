"""One query per head over pieces of history: the formula in float32, without copying history.

Every piece is a view of a buffer. All scores of a query stand side by side under one softmax, so
that a key seen twice counts twice and nothing is merged afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch

from ringspan.engine.merge import accumulation_dtype

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

    from ringspan.decoding.sizes import Sizes

__all__ = ["Piece", "attend_step"]

_IN_CACHE = 2**18
_ON_DEVICE = 2**26


class Piece(NamedTuple):
    """History that some query heads see whole. Lane `l` serves as many heads as any other."""

    heads: Tensor
    """int64 `[L * m]`: the query heads of lane 0, then those of lane 1 .."""
    key: Tensor
    """`[L, B, n, D]`"""
    value: Tensor
    """`[L, B, n, Dv]`"""

    @property
    def rows(self) -> int:
        """How many keys each of these heads sees here, `n`."""
        return self.key.shape[2]

    def by_lane(self, x_HBC: Tensor) -> Tensor:
        """`[H, B, C]` to `[L * B, m, C]`: the heads of one lane side by side."""
        lanes, batch = self.key.shape[:2]
        x = x_HBC.index_select(0, self.heads)
        x = x.reshape(lanes, len(self.heads) // lanes, batch, x.shape[-1])
        return x.transpose(1, 2).flatten(0, 1)

    def by_head(self, x: Tensor) -> Tensor:
        """`[L * B, m, C]` to `[L * m, B, C]`, in the order of `heads`."""
        lanes, batch = self.key.shape[:2]
        return x.reshape(lanes, batch, *x.shape[1:]).transpose(1, 2).flatten(0, 1)


def attend_step(
    query: Float[Tensor, "B 1 H D"],
    pieces: Sequence[Piece],
    scale: float,
    sink: Float[Tensor, " H"] | None,
    sizes: Sizes,
) -> Float[Tensor, "B 1 H Dv"]:
    """Attention of one token per sequence over all `pieces`; heads without any give zeros."""
    wide = accumulation_dtype(query.dtype)
    q_HBD = query[:, 0].transpose(0, 1).to(wide) * scale
    columns = _side_by_side(pieces)
    width = sum(piece.rows for piece in pieces) + (sink is not None)
    scores = q_HBD.new_full((sizes.heads, sizes.batch, width), -torch.inf)
    if sink is not None:
        scores[..., -1] = sink[:, None]
    for piece, at in zip(pieces, columns, strict=True):
        scores[piece.heads, :, at] = piece.by_head(_scores(piece.by_lane(q_HBD), piece.key))
    # A row without any key is NaN here, and is not read below.
    weights = scores.softmax(-1)
    out = q_HBD.new_zeros(sizes.heads, sizes.batch, sizes.value_head_dim)
    for piece, at in zip(pieces, columns, strict=True):
        share = _sums(piece.by_lane(weights[:, :, at]), piece.value)
        out.index_add_(0, piece.heads, piece.by_head(share))
    return out.transpose(0, 1).to(query.dtype)[:, None]


def _side_by_side(pieces: Sequence[Piece]) -> list[slice]:
    """The columns of each piece's keys."""
    ends = accumulate(piece.rows for piece in pieces)
    return [slice(end - piece.rows, end) for end, piece in zip(ends, pieces, strict=True)]


def _scores(query: Tensor, key: Tensor) -> Tensor:
    """`[X, m, D]` and `[L, B, n, D]` to `[X, m, n]`, with `X = L * B`."""
    key = key.flatten(0, 1)
    if key.dtype == query.dtype:
        return query @ key.mT
    scores = query.new_empty(*query.shape[:2], key.shape[1])
    for lanes, rows in _blocks(key):
        scores[lanes, :, rows] = query[lanes] @ key[lanes, rows].to(query.dtype).mT
    return scores


def _sums(weights: Tensor, value: Tensor) -> Tensor:
    """`[X, m, n]` and `[L, B, n, Dv]` to `[X, m, Dv]`."""
    value = value.flatten(0, 1)
    if value.dtype == weights.dtype:
        return weights @ value
    sums = weights.new_zeros(*weights.shape[:2], value.shape[2])
    for lanes, rows in _blocks(value):
        sums[lanes] += weights[lanes, :, rows] @ value[lanes, rows].to(weights.dtype)
    return sums


def _blocks(history: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cuts `[X, n, D]` so that what is widened to float32 at once stays in a processor's cache."""
    count, length, dim = history.shape
    most = _IN_CACHE if history.device.type == "cpu" else _ON_DEVICE
    rows = max(1, min(length, most // dim))
    lanes = max(1, most // (rows * dim))
    for lane in range(0, count, lanes):
        for row in range(0, length, rows):
            yield slice(lane, lane + lanes), slice(row, row + rows)
