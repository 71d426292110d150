"""Sorting by keys of many words, of which few points need more than the first."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ringspan_hilbert.box import Box

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["sort_by_words"]


def sort_by_words(box: Box, keys: Callable[[Box, int], Int[Tensor, " n"]]) -> Int[Tensor, " N"]:
    """Indices that put the points of `box` in order of their keys, int64 `[N]`.

    Args:
        box: the points.
        keys: `keys(points, word)` is one int64 word of each point's key, word 0 the most
            significant. Different points differ in some word, so a key may be of any length.

    Only points whose words are equal so far, although they are not the same point, are asked
    for another word. Those at the same point keep their order.
    """
    words = keys(box, 0)
    order = _argsort(words)
    words = words.index_select(0, order)
    places = _shared(words)
    groups, word = _numbered(words[places]), 0
    while places.numel() > 0:
        tokens = order[places]
        points = box.of(tokens)
        if _coincide(points, groups):
            order[places] = tokens[_argsort_pairs(groups, tokens)]
            break
        word += 1
        words = keys(points, word)
        within = _argsort_pairs(groups, words)
        order[places] = tokens[within]
        groups = _numbered(groups[within], words[within])
        still = _shared(groups)
        places, groups = places[still], groups[still]
    return order


def _argsort(words: Tensor) -> Tensor:
    """Equal words in any order: they are looked at again."""
    if words.device.type == "cpu":
        # NumPy sorts integers by vector instructions, several times as fast as torch does.
        return torch.from_numpy(words.numpy().argsort())
    return torch.argsort(words)


def _argsort_pairs(leading: Tensor, following: Tensor) -> Tensor:
    order = torch.argsort(following, stable=True)
    return order[torch.argsort(leading[order], stable=True)]


def _numbered(*columns: Tensor) -> Tensor:
    """Numbers runs of rows that are equal in all columns, from 0."""
    numbers = torch.zeros_like(columns[0])
    changes = torch.stack([column[1:] != column[:-1] for column in columns]).any(dim=0)
    numbers[1:] = changes.cumsum(dim=0)
    return numbers


def _shared(groups: Tensor) -> Tensor:
    """Indices of those that are equal to a neighbour."""
    same = groups[1:] == groups[:-1]
    shared = torch.zeros_like(groups, dtype=torch.bool)
    shared[1:] = same
    shared[:-1] |= same
    return shared.nonzero().squeeze(1)


def _coincide(points: Box, groups: Tensor) -> bool:
    """Whether all points of a group are the same point."""
    others = groups[1:] != groups[:-1]
    return all(bool(((axis[1:] == axis[:-1]) | others).all()) for axis in points.axes)
