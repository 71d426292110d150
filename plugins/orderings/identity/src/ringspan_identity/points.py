"""Coordinates of the tokens, and how to sort by several of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ringspan.contracts import InvalidArgument, Sequence, Tokens

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["axes_of", "dense_rank", "lexicographic"]


def axes_of(
    tokens: Tokens, *, ordering: str, device: torch.device | str
) -> list[Int[Tensor, " N"]]:
    """The coordinates of `tokens`, measured from the smallest: int64 `[N]` per axis.

    Raises:
        InvalidArgument: `tokens` is a plain `Sequence`, which has no coordinates.
    """
    if isinstance(tokens, Sequence):
        raise InvalidArgument(
            "tokens",
            expected=f"Grid or Coordinates, for the ordering {ordering!r} scans two or three "
            "dimensions",
            got=repr(tokens),
            remedy="Pass tokens=Grid(h, w), or fold the sequence on an invented grid with "
            f"along=Along({ordering!r}, fold=True)",
        )
    points = tokens.coordinates
    if len(points) > 0:
        points = points - points.min(axis=0)
    return [torch.tensor(points[:, axis], device=device) for axis in range(points.shape[1])]


def lexicographic(keys: list[Int[Tensor, " N"]]) -> Int[Tensor, " N"]:
    """Indices that sort by the first key, ties by the next, and so on; then in token order.

    Example:
        >>> lexicographic([torch.tensor([1, 0, 1]), torch.tensor([0, 9, 0])]).tolist()
        [1, 0, 2]
    """
    order = torch.argsort(keys[-1], stable=True)
    for key in reversed(keys[:-1]):
        order = order[torch.argsort(key[order], stable=True)]
    return order


def dense_rank(first: Int[Tensor, " N"], second: Int[Tensor, " N"]) -> Int[Tensor, " N"]:
    """How many distinct pairs come before each pair `(first, second)`.

    Args:
        first: int64 `[N]` in `0 .. N - 1`, such as an earlier rank.
        second: int64 `[N]` in `-2**31 .. 2**31 - 1`.

    Example:
        >>> dense_rank(torch.tensor([0, 1, 0]), torch.tensor([7, -3, 7])).tolist()
        [0, 1, 0]
    """
    rank: Tensor = torch.unique((first << 32) + second, return_inverse=True)[1]
    return rank
