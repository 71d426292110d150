"""Sorting by several coordinates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Int
    from torch import Tensor

__all__ = ["dense_rank", "lexicographic"]


def lexicographic(keys: Sequence[Int[Tensor, " N"]]) -> Int[Tensor, " N"]:
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
