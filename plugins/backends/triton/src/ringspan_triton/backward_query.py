"""The gradient of a block of queries, one block of keys at a time."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

import triton
import triton.language as tl

from ringspan_triton.dropping import is_kept, key_words, query_words
from ringspan_triton.forward import LOG2_E
from ringspan_triton.interpreting import device, steps
from ringspan_triton.masking import key_span, row_bounds, seen_pairs
from ringspan_triton.places import add_rows, load_rows, load_scalars, row_numbers, store_rows
from ringspan_triton.programs import VARYING, block_rows, number, own_rows, place, walks

__all__ = ["query_kernel"]


@triton.jit(do_not_specialize=VARYING)
def query_kernel(
    grad_out, query, key, value, lse, delta, grad_query, query_places, key_places, query_heads,
    key_heads, visible, sparse, drawing, sizes, scale, base2_scale, CASE: tl.constexpr,
    FIRST: tl.constexpr, WIDE: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes (`FIRST`) or adds `scale sum_j dS_ij k_j`, with `dS = P (dO V' - delta)`."""
    batch, tile, group, member, block = place(sizes, sizes.group)
    query_head = tl.load(query_heads + group) + member
    at = (batch, tile, group, member, query_head, tl.load(key_heads + group))
    first, last, i, i_in_block = own_rows(sparse, block, sizes.queries, QUERIES)
    inside = i < last
    rows = row_numbers(query_places, tile, group, i, inside)
    q = load_rows(query, batch, query_head, rows, inside, D, WIDTH)
    dO = load_rows(grad_out, batch, query_head, rows, inside, DV, VALUE_WIDTH)
    final = load_scalars(lse, batch, query_head, rows, inside, float("inf")).to(WIDE) * LOG2_E
    inner = load_scalars(delta, batch, query_head, rows, inside, 0.0).to(WIDE)
    low, high = row_bounds(visible, at, i, inside, CASE)
    words = i
    if drawing is not None:
        words = query_words(drawing, batch, query_head, rows, inside)
    own = (i, i_in_block, low, high, words, q, dO, final, inner)

    start, stop, all_start, all_stop = key_span(
        visible, first, last, sizes.keys, low, high, inside, CASE
    )
    plain, plain_count, masked, masked_count, gap_at, gap = walks(
        sparse, block, start, stop, all_start, all_stop, sizes.keys + KEYS,
        visible.padding is not None, KEYS,
    )  # fmt: skip
    dq = tl.full([QUERIES, WIDTH], 0.0, WIDE)
    base2 = number(base2_scale, WIDE)
    dq = _collect(
        dq, own, key, value, key_places, visible, sparse, drawing, at, sizes.keys, base2, plain,
        plain_count, 0, 0, CASE, False, D, DV, WIDTH, VALUE_WIDTH, KEYS,
    )  # fmt: skip
    dq = _collect(
        dq, own, key, value, key_places, visible, sparse, drawing, at, sizes.keys, base2, masked,
        masked_count, gap_at, gap, CASE, True, D, DV, WIDTH, VALUE_WIDTH, KEYS,
    )  # fmt: skip
    dq = dq * number(scale, WIDE)
    if FIRST:
        store_rows(grad_query, batch, query_head, rows, inside, dq, D, WIDTH)
    else:
        add_rows(grad_query, batch, query_head, rows, inside, dq, D, WIDTH)


@device
def _collect(
    dq, own, key, value, places, visible, sparse, drawing, at, keys, scale, first, count, gap_at,
    gap, CASE: tl.constexpr, MASKED: tl.constexpr, D: tl.constexpr, DV: tl.constexpr,
    WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Takes in `count` blocks of keys, from `first` on, passing over `gap` of them."""
    batch, tile, group, _, query_head, key_head = at
    i, i_in_block, low, high, words, q, dO, final, inner = own
    for step in steps(0, count):
        block = first + step
        if MASKED:
            block = block + tl.where(step >= gap_at, gap, 0)
        j, j_in_block, inside, bitmap = block_rows(sparse, block, keys, KEYS)
        rows = row_numbers(places, tile, group, j, inside)
        k = load_rows(key, batch, key_head, rows, inside, D, WIDTH)
        v = load_rows(value, batch, key_head, rows, inside, DV, VALUE_WIDTH)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee", out_dtype=dq.dtype) * scale
        p = tl.exp2(scores - final[:, None])
        dP = tl.dot(dO, tl.trans(v), input_precision="ieee", out_dtype=dq.dtype)
        if drawing is not None:
            key_word = key_words(drawing, batch, query_head, rows, inside)
            keep = is_kept(drawing, words[:, None], key_word[None, :])
            dP = tl.where(keep, dP * number(drawing.share, dq.dtype), 0.0)
        dS = p * (dP - inner[:, None])
        if MASKED:
            here = inside
            if visible.padding is not None:
                here = here & (load_scalars(visible.padding, batch, group, rows, inside, 0) != 0)
            seen = seen_pairs(
                visible, sparse, bitmap, at, i[:, None], j[None, :], i_in_block[:, None],
                j_in_block[None, :], low[:, None], high[:, None], here[None, :], CASE,
            )  # fmt: skip
            dS = tl.where(seen, dS, 0.0)
        dq = tl.dot(dS.to(k.dtype), k, dq, input_precision="ieee", out_dtype=dq.dtype)
    return dq
