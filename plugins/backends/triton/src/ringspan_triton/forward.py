"""The forward kernel: softmax attention of a block of queries, one block of keys at a time."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

import triton
import triton.language as tl

from ringspan_triton.dropping import is_kept, key_words, query_words
from ringspan_triton.interpreting import device, largest, steps, total_of
from ringspan_triton.masking import key_span, row_bounds, seen_pairs
from ringspan_triton.places import load_rows, load_scalars, row_numbers, store_rows, store_scalars
from ringspan_triton.programs import VARYING, block_rows, number, own_rows, place, walks

__all__ = ["forward_kernel"]

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit(do_not_specialize=VARYING)
def forward_kernel(
    query, key, value, out, lse, sink, query_places, key_places, query_heads, key_heads, visible,
    sparse, drawing, sizes, scale, CASE: tl.constexpr, IN_PLACE: tl.constexpr, WIDE: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """`out` and `lse` of one block of queries of one head.

    Scores are in base 2: `scale` has `log2(e)` in it. With `IN_PLACE` results lie as the queries
    do, else as `[B * T, L, K * G]`.
    """
    batch, tile, group, member, block = place(sizes, sizes.group)
    query_head = tl.load(query_heads + group) + member
    at = (batch, tile, group, member, query_head, tl.load(key_heads + group))
    first, last, i, i_in_block = own_rows(sparse, block, sizes.queries, QUERIES)
    inside = i < last
    rows = row_numbers(query_places, tile, group, i, inside)
    q = load_rows(query, batch, query_head, rows, inside, D, WIDTH)
    low, high = row_bounds(visible, at, i, inside, CASE)
    words = i
    if drawing is not None:
        words = query_words(drawing, batch, query_head, rows, inside)
    own = (i, i_in_block, low, high, words)

    top = tl.full([QUERIES], float("-inf"), WIDE)
    total = tl.full([QUERIES], 0.0, WIDE)
    if sink is not None:
        top = load_scalars(sink, 0, query_head, rows, inside, float("-inf")).to(WIDE) * LOG2_E
        total = tl.where(top == float("-inf"), 0.0, 1.0).to(WIDE)
    state = (tl.full([QUERIES, VALUE_WIDTH], 0.0, WIDE), total, top)
    start, stop, all_start, all_stop = key_span(
        visible, first, last, sizes.keys, low, high, inside, CASE
    )
    plain, plain_count, masked, masked_count, gap_at, gap = walks(
        sparse, block, start, stop, all_start, all_stop, sizes.keys + KEYS,
        visible.padding is not None, KEYS,
    )  # fmt: skip
    base2 = number(scale, WIDE)
    state = _attend(
        state, q, key, value, key_places, visible, sparse, drawing, at, own, sizes.keys, base2,
        plain, plain_count, 0, 0, CASE, False, D, DV, WIDTH, VALUE_WIDTH, KEYS,
    )  # fmt: skip
    acc, total, top = _attend(
        state, q, key, value, key_places, visible, sparse, drawing, at, own, sizes.keys, base2,
        masked, masked_count, gap_at, gap, CASE, True, D, DV, WIDTH, VALUE_WIDTH, KEYS,
    )  # fmt: skip

    share = 1.0
    if drawing is not None:
        share = number(drawing.share, WIDE)
    # The largest weight is 1, so a total of 0 is that of a row that sees nothing.
    some = total != 0.0
    divisor = tl.where(some, total, 1.0)
    acc = acc * (share / divisor)[:, None]
    result = tl.where(some, top * LN_2 + tl.log(divisor), float("-inf"))
    if not IN_PLACE:
        batch = batch * sizes.tiles + tile
        query_head = group * sizes.group + member
        rows = i.to(tl.int64)
    store_rows(out, batch, query_head, rows, inside, acc, DV, VALUE_WIDTH)
    store_scalars(lse, batch, query_head, rows, inside, result)


@device
def _attend(
    state, q, key, value, places, visible, sparse, drawing, at, own, keys, scale, first, count,
    gap_at, gap, CASE: tl.constexpr, MASKED: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Takes in `count` blocks of keys, from `first` on, passing over `gap` of them."""
    acc, total, top = state
    batch, tile, group, _, query_head, key_head = at
    i, i_in_block, low, high, words = own
    for step in steps(0, count):
        block = first + step
        if MASKED:
            block = block + tl.where(step >= gap_at, gap, 0)
        j, j_in_block, inside, bitmap = block_rows(sparse, block, keys, KEYS)
        rows = row_numbers(places, tile, group, j, inside)
        k = load_rows(key, batch, key_head, rows, inside, D, WIDTH)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=acc.dtype) * scale
        if MASKED:
            here = inside
            if visible.padding is not None:
                here = here & (load_scalars(visible.padding, batch, group, rows, inside, 0) != 0)
            seen = seen_pairs(
                visible, sparse, bitmap, at, i[:, None], j[None, :], i_in_block[:, None],
                j_in_block[None, :], low[:, None], high[:, None], here[None, :], CASE,
            )  # fmt: skip
            scores = tl.where(seen, scores, float("-inf"))
        new_top = tl.maximum(top, largest(scores, 1))
        # A row that has seen nothing has a top of -inf; 0 in its place makes weights 0, not NaN.
        finite = tl.where(new_top == float("-inf"), 0.0, new_top)
        p = tl.exp2(scores - finite[:, None])
        shrink = tl.exp2(top - finite)
        total = total * shrink + total_of(p, 1)
        top = new_top
        if drawing is not None:
            key_word = key_words(drawing, batch, query_head, rows, inside)
            p = tl.where(is_kept(drawing, words[:, None], key_word[None, :]), p, 0.0)
        v = load_rows(value, batch, key_head, rows, inside, DV, VALUE_WIDTH)
        acc = tl.dot(
            p.to(v.dtype), v, acc * shrink[:, None], input_precision="ieee", out_dtype=acc.dtype
        )
    return acc, total, top
