"""How often a query sees a key, `m_h(i, j)`, written down as each pattern is defined.

Slow and dense on purpose: a reader can hold every line against the definition. First one function
per pattern, for one document and every query, then what may be done to any of them: order,
causality, documents, padding and a choice of queries. `i` and `j` are positions; where a pattern
is taken along an ordering, its segments, offsets and windows are taken in *places*, while
causality still compares positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch

from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    from jaxtyping import Bool, Int
    from torch import Tensor

    HeadOffsets = str | Sequence[int] | Sequence[Sequence[int]]

__all__ = [
    "block_sparse",
    "causal_part",
    "consecutive",
    "dense",
    "dilated",
    "head_groups",
    "head_offset",
    "in_places",
    "neighborhood",
    "packed",
    "torchscale",
    "torchscale_null_keys",
    "without_padding",
]


def dense(
    N: int, *, causal: bool = False, window: tuple[int | None, int | None] | None = None
) -> Int[Tensor, "1 N N"]:
    """1 for every pair; with `window=(left, right)` for `i - left <= j <= i + right`.

    A side of None has no bound. If causal, only `j <= i`.

    Example:
        >>> dense(2, causal=True)
        tensor([[[1, 0],
                 [1, 1]]])
    """
    left, right = (None, None) if window is None else window
    position = torch.arange(N)
    i, j = position[:, None], position[None, :]
    seen = torch.ones(N, N, dtype=torch.bool)
    if left is not None:
        seen &= i - left <= j
    if right is not None:
        seen &= j <= i + right
    m = seen.long()[None]
    return causal_part(m) if causal else m


def dilated(
    N: int,
    heads: int,
    kv_heads: int,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    head_offsets: HeadOffsets = "modulo",
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
        head_offsets: the rule for `o_c(h)`, see `head_offset`; or one such rule per branch.
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
        rule = _branch_rule(head_offsets, branch)
        for h in range(heads):
            kept = slot == head_offset(rule, h, heads, kv_heads, r)
            same_segment = segment[:, None] == segment[None, :]
            m[h] += same_segment & kept[:, None] & kept[None, :]
    return causal_part(m) if causal else m


def head_offset(rule: str | Sequence[int], head: int, heads: int, kv_heads: int, rate: int) -> int:
    """The offset `o_c(h)` that query head `head` keeps in a branch of rate `rate`.

    With `h_kv` the key/value head it reads: `"modulo"` is `h_kv mod r`, `"query"` is `h mod r`,
    `"blocked"` is `h_kv // ceil(Hkv / r)`; integers are taken as they are, one per query head
    (a head whose integer is not below `r` keeps nothing).
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


def torchscale(
    N: int,
    heads: int,
    kv_heads: int,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
) -> Int[Tensor, "heads N N"]:
    """`dilated` with blocked offsets and segments of `w' = min(w, N)`."""
    shortened = [min(w, N) for w in segment_lengths]
    return dilated(N, heads, kv_heads, shortened, dilation_rates, "blocked")


def torchscale_null_keys(
    N: int,
    heads: int,
    kv_heads: int,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
) -> Int[Tensor, "heads N"]:
    """How many keys of torchscale's zero padding each token sees, summed over branches.

    A branch fills the last segment up to `w' = min(w, N)` tokens and each segment up to a
    multiple of `r`, so that every offset has `ceil(w' / r)` slots in every segment; a token that
    takes part sees those slots of its segment that hold no token.

    Example:
        >>> torchscale_null_keys(5, 1, 1, [4], [3])
        tensor([[0, 0, 0, 0, 1]])
    """
    null_keys = torch.zeros(heads, N, dtype=torch.int64)
    for w, r in zip(segment_lengths, dilation_rates, strict=True):
        w = min(w, N)
        for h, i in itertools.product(range(heads), range(N)):
            o = head_offset("blocked", h, heads, kv_heads, r)
            if (i % w) % r == o:
                segment = range(i // w * w, min(i // w * w + w, N))
                tokens = sum((j % w) % r == o for j in segment)
                null_keys[h, i] += -(-w // r) - tokens
    return null_keys


def head_groups(
    N: int,
    heads: int,
    kv_heads: int,
    segment_lengths: Sequence[int],
    dilation_rates: Sequence[int],
    places: Sequence[Int[Tensor, " N"]] | None = None,
) -> Int[Tensor, "heads N N"]:
    """Each group of key/value heads uses one branch alone.

    Of `G` branches, the first `Hkv mod G` have a group one larger; a head's offset is its index
    within the group, mod `r`. `places` are each branch's, as for `dilated`.
    """
    groups = len(segment_lengths)
    of_kv_head = []
    for g in range(groups):
        size = kv_heads // groups + (g < kv_heads % groups)
        of_kv_head += [(g, index) for index in range(size)]
    m = torch.zeros(heads, N, N, dtype=torch.int64)
    for h in range(heads):
        g, index = of_kv_head[h // (heads // kv_heads)]
        w, r = segment_lengths[g], dilation_rates[g]
        m[h] = dilated(N, 1, 1, [w], [r], [index % r], places=_branch_places(N, places, g))
    return m


def consecutive(
    N: int, segment_lengths: Sequence[int], dilation_rates: Sequence[int]
) -> Int[Tensor, "1 N N"]:
    """Segments one after the other, their lengths repeated to the end; `i = j (mod r)` inside."""
    branches = itertools.cycle(zip(segment_lengths, dilation_rates, strict=True))
    m = torch.zeros(1, N, N, dtype=torch.int64)
    start = 0
    while start < N:
        w, r = next(branches)
        for i, j in itertools.product(range(start, min(start + w, N)), repeat=2):
            m[0, i, j] = (i - j) % r == 0
        start += w
    return m


def neighborhood(
    coordinates: Int[Tensor, "N axes"],
    window: int | Sequence[int],
    dilation: int | Sequence[int] = 1,
    stride: int | Sequence[int] = 1,
    edges: str = "clip",
    causal_axes: Sequence[int] = (),
) -> Int[Tensor, "1 N N"]:
    """The product over axes of NATTEN's rule.

    Each axis is counted from its smallest coordinate to its largest. A sequence is `N` points on
    one axis. An integer stands for the same on every axis.

    Example:
        >>> line = torch.arange(4)[:, None]
        >>> neighborhood(line, 3, edges="shift")
        tensor([[[1, 1, 1, 0],
                 [1, 1, 1, 0],
                 [0, 1, 1, 1],
                 [0, 1, 1, 1]]])
    """
    N, axes = coordinates.shape
    m = torch.ones(1, N, N, dtype=torch.int64)
    for axis in range(axes) if N else ():
        c = coordinates[:, axis] - coordinates[:, axis].min()
        length = int(c.max()) + 1
        table = torch.zeros(length, length, dtype=torch.int64)
        for query in range(length):
            seen = _seen_on_axis(
                query,
                length,
                _on_axis(window, axis),
                _on_axis(dilation, axis),
                _on_axis(stride, axis),
                "causal" if axis in causal_axes else edges,
            )
            table[query, list(seen)] = 1
        m[0] *= table[c][:, c]
    return m


def _on_axis(value: int | Sequence[int], axis: int) -> int:
    return value if isinstance(value, int) else value[axis]


def _seen_on_axis(
    query: int, length: int, window: int, dilation: int, stride: int, edges: str
) -> range:
    """The coordinates that a query's coordinate sees on an axis of `length` coordinates."""
    residue = query % dilation
    # Numbered within the coordinates of the same residue, of which there are `count`.
    number, count = query // dilation, len(range(residue, length, dilation))
    first_of_group = number // stride * stride
    if edges == "causal":
        leader = min(first_of_group + stride - 1, count - 1)
        first, last = leader - window + 1, number
    else:
        # Of an even window the longer half looks back; of an even group the later middle leads.
        leader = min(first_of_group + stride // 2, count - 1)
        first, last = leader - window // 2, leader + (window - 1) // 2
    if edges == "shift":
        first = min(max(first, 0), count - window)
        last = first + window - 1
    first, last = max(first, 0), min(last, count - 1)
    return range(residue + first * dilation, residue + last * dilation + 1, dilation)


def block_sparse(N: int, block_size: int, seen: Callable[[int, int], bool]) -> Int[Tensor, "1 N N"]:
    """1 where `seen(block of i, block of j)`. Blocks of one token: any mask of elements.

    Example:
        >>> block_sparse(3, 2, lambda i, j: i == j)
        tensor([[[1, 1, 0],
                 [1, 1, 0],
                 [0, 0, 1]]])
    """
    blocks = range(-(-N // block_size))
    table = torch.tensor([[bool(seen(i, j)) for j in blocks] for i in blocks]).long()
    block = torch.arange(N) // block_size
    return table.reshape(len(blocks), len(blocks))[block][:, block][None]


def in_places(m: Int[Tensor, "H N N"], places: Int[Tensor, " N"]) -> Int[Tensor, "H N N"]:
    """A pattern taken along an ordering: `m` counts places, the result positions."""
    return m[:, places][:, :, places]


def causal_part(m: Int[Tensor, "H N N"]) -> Int[Tensor, "H N N"]:
    """Only what lies in the past: `j <= i`, in positions."""
    position = torch.arange(m.shape[-1])
    return m * (position[None, :] <= position[:, None])


def packed(alone: Sequence[Int[Tensor, "H n n"]]) -> Int[Tensor, "H N N"]:
    """Documents one after the other, which do not see each other, from each document alone."""
    heads, N = max((m.shape[0] for m in alone), default=1), sum(m.shape[-1] for m in alone)
    together = torch.zeros(heads, N, N, dtype=torch.int64)
    start = 0
    for m in alone:
        end = start + m.shape[-1]
        together[:, start:end, start:end] = m
        start = end
    return together


def without_padding(
    m: Int[Tensor, "H Nq N"], key_padding: Bool[Tensor, "B N"]
) -> Int[Tensor, "B H Nq N"]:
    """Nobody sees a key that is padding. `key_padding` is True for what is real."""
    return m[None] * key_padding[:, None, None, :]


def _branch_rule(head_offsets: HeadOffsets, branch: int) -> str | Sequence[int]:
    if isinstance(head_offsets, str):
        return head_offsets
    if isinstance(head_offsets[0], int):
        return cast("Sequence[int]", head_offsets)
    return cast("Sequence[Sequence[int]]", head_offsets)[branch]


def _branch_places(
    N: int, places: Tensor | Sequence[Tensor] | None, branch: int
) -> Int[Tensor, " N"]:
    if places is None:
        return torch.arange(N)
    return places if isinstance(places, torch.Tensor) else places[branch]
