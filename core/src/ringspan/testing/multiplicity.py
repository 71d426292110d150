"""How often a query sees a key, `m_h(i, j)`, written down as each pattern is defined.

Slow and dense on purpose: a reader can hold every line against the definition. `i` and `j` are
positions; where a pattern is taken along an ordering, its segments and offsets are taken in
*places*, while causality still compares positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["dense", "dilated", "head_offset"]


def dense(N: int, *, causal: bool = False) -> Int[Tensor, "1 N N"]:
    """1 for every pair; if causal, for every `j <= i`.

    Example:
        >>> dense(2, causal=True)
        tensor([[[1, 0],
                 [1, 1]]])
    """
    m = torch.ones(1, N, N, dtype=torch.int64)
    return m * _past(N) if causal else m


def dilated(
    N: int,
    heads: int,
    kv_heads: int,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    head_offsets: str | Sequence[int] = "modulo",
    causal: bool = False,
    places: Int[Tensor, " N"] | Sequence[Int[Tensor, " N"]] | None = None,
) -> Int[Tensor, "heads N N"]:
    """How many branches `c` show key `j` to query `i` of head `h`.

    Those with `i // w == j // w` and `(i mod w) mod r == (j mod w) mod r == o_c(h)`, where `i`
    and `j` stand for their places.

    Args:
        N: number of tokens.
        heads: number of query heads.
        kv_heads: number of key/value heads.
        segment_lengths: `w` of each branch.
        dilation_rates: `r` of each branch.
        head_offsets: the rule for `o_c(h)`, see `head_offset`.
        causal: only `j <= i`, in positions.
        places: where each token stands along the ordering that the pattern is taken along,
            or one such tensor per branch; default: its position.

    Example:
        >>> dilated(4, 1, 1, [2, 4], [1, 2])
        tensor([[[2, 1, 1, 0],
                 [1, 1, 0, 0],
                 [1, 0, 2, 1],
                 [0, 0, 1, 1]]])
    """
    m = torch.zeros(heads, N, N, dtype=torch.int64)
    for branch, (w, r) in enumerate(zip(segment_lengths, dilation_rates, strict=True)):
        place = _branch_places(N, places, branch)
        segment, slot = place // w, (place % w) % r
        for h in range(heads):
            kept = slot == head_offset(head_offsets, h, heads, kv_heads, r)
            same_segment = segment[:, None] == segment[None, :]
            m[h] += same_segment & kept[:, None] & kept[None, :]
    return m * _past(N) if causal else m


def head_offset(rule: str | Sequence[int], head: int, heads: int, kv_heads: int, rate: int) -> int:
    """The offset `o_c(h)` that query head `head` keeps in a branch of rate `rate`.

    With `h_kv` the key/value head it reads: `"modulo"` is `h_kv mod r`, `"query"` is `h mod r`,
    `"blocked"` is `h_kv // ceil(Hkv / r)`; integers are taken as they are, one per query head.
    """
    kv_head = head // (heads // kv_heads)
    if rule == "modulo":
        return kv_head % rate
    if rule == "query":
        return head % rate
    if rule == "blocked":
        return kv_head // -(-kv_heads // rate)
    if isinstance(rule, str):
        raise InvalidArgument(
            "head_offsets", expected="'modulo', 'query', 'blocked' or integers", got=repr(rule)
        )
    return rule[head]


def _past(N: int) -> Tensor:
    position = torch.arange(N)
    return position[None, :] <= position[:, None]


def _branch_places(
    N: int, places: Tensor | Sequence[Tensor] | None, branch: int
) -> Int[Tensor, " N"]:
    if places is None:
        return torch.arange(N)
    return places if isinstance(places, torch.Tensor) else places[branch]
