"""Dropout that every kernel, tiling and world size draws alike.

A probability is kept or dropped by a counter-based generator: a hash of the seed, the sequence
in the batch, the query head and the positions of query and key. With 32-bit unsigned arithmetic
and

    mix(x):  x ^= x >> 16;  x *= 0x7FEB352D;  x ^= x >> 15;  x *= 0x846CA68B;  x ^= x >> 16
    row(i) = mix(mix(mix(seed_low ^ mix(seed_high + b * 0x9E3779B1)) + h * 0x85EBCA77) + i)
    h_ij   = mix(mix(row(i) + j * 0xC2B2AE3D) ^ row(i))

query `i` keeps key `j` where `h_ij >= floor(p * 2**32)`. (`mix` is Wellons' lowbias32 hash.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

__all__ = ["Dropout", "kept"]

_WORD = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """lowbias32, on 32-bit words held in int64."""
    x = x ^ (x >> 16)
    x = _times(x, 0x7FEB352D)
    x = x ^ (x >> 15)
    x = _times(x, 0x846CA68B)
    return x ^ (x >> 16)


def _times(x: Tensor, factor: int) -> Tensor:
    """The low word of a product. Wrapping around in int64 leaves the low word as it is."""
    return (x * factor) & _WORD


def kept(
    p: float,
    seed: int,
    batch: Int[Tensor, "*#rows"],
    head: Int[Tensor, "*#rows"],
    query: Int[Tensor, "*#rows Lq"],
    key: Int[Tensor, "*#rows Lk"],
) -> Bool[Tensor, "*rows Lq Lk"]:
    """Which pairs keep their probability.

    Args:
        p: probability of dropping, in `0 .. 1`.
        seed: any integer; its low 64 bits count.
        batch: number of the sequence in the batch.
        head: number of the query head.
        query: positions of the queries.
        key: positions of the keys.

    Example:
        >>> import torch
        >>> i = torch.arange(3)
        >>> kept(0.5, 7, torch.tensor(0), torch.tensor(1), i, i).shape
        torch.Size([3, 3])
    """
    low, high = seed & _WORD, (seed >> 32) & _WORD
    stream = _mix((high + _times(batch.long(), 0x9E3779B1)) & _WORD) ^ low
    stream = _mix((_mix(stream) + _times(head.long(), 0x85EBCA77)) & _WORD)
    row = _mix((stream[..., None] + query.long()) & _WORD)[..., None]
    column = _times(key.long(), 0xC2B2AE3D)[..., None, :]
    return _mix(_mix((row + column) & _WORD) ^ row) >= int(p * 2**32)


@dataclass(frozen=True, slots=True)
class Dropout:
    """What a backend needs to draw its tiles' part of the mask.

    The normaliser is not dropped: `O_i = sum_j P_ij keep_ij / (1 - p) v_j`, with `P` and the
    log-sum-exp as without dropout. All tensors are on the device of the query.
    """

    p: float
    """Probability of dropping, `0 < p < 1`."""
    seed: int
    batch: Int[Tensor, " batch"]
    """For each tile of the call, the number of its sequence in the user's batch."""
    heads: Int[Tensor, " heads"]
    """For each query head of the call, its number among all query heads."""
    query_positions: Int[Tensor, "#batch #heads Lq"]
    key_positions: Int[Tensor, "#batch #heads Lk"]

    def kept(self, rows: slice = slice(None)) -> Bool[Tensor, "batch heads rows Lk"]:
        """Which pairs of some query rows keep their probability."""
        return kept(
            self.p,
            self.seed,
            self.batch[:, None],
            self.heads,
            self.query_positions[..., rows],
            self.key_positions,
        )
