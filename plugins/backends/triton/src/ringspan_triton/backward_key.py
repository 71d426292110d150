"""The gradients of a block of keys and values, one block of queries at a time."""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

import triton
import triton.language as tl

from ringspan_triton.dropping import is_kept, key_words, query_words
from ringspan_triton.forward import LOG2_E
from ringspan_triton.interpreting import device, steps
from ringspan_triton.masking import query_span, row_bounds, seen_pairs
from ringspan_triton.places import add_rows, load_rows, load_scalars, row_numbers, store_rows
from ringspan_triton.programs import VARYING, block_rows, number, own_rows, place, walks

__all__ = ["key_kernel"]


@triton.jit(do_not_specialize=VARYING)
def key_kernel(
    grad_out, query, key, value, lse, delta, grad_key, grad_value, query_places, key_places,
    query_heads, key_heads, visible, sparse, drawing, sizes, scale, base2_scale,
    CASE: tl.constexpr, FIRST: tl.constexpr, IN_PLACE: tl.constexpr, WIDE: tl.constexpr,
    D: tl.constexpr, DV: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """Writes (`FIRST`) or adds `scale sum_i dS_ij q_i` and `sum_i P_ij dO_i`, over a group's heads.

    With `IN_PLACE` they lie as the keys do, else as `[B * T, L, K]`.
    """
    batch, tile, group, member, block = place(sizes, 1)
    key_head = tl.load(key_heads + group)
    first, last, j, j_in_block = own_rows(sparse, block, sizes.keys, KEYS)
    inside = j < last
    rows = row_numbers(key_places, tile, group, j, inside)
    k = load_rows(key, batch, key_head, rows, inside, D, WIDTH)
    v = load_rows(value, batch, key_head, rows, inside, DV, VALUE_WIDTH)
    here = inside
    if visible.padding is not None:
        here = here & (load_scalars(visible.padding, batch, group, rows, inside, 0) != 0)

    dk = tl.full([KEYS, WIDTH], 0.0, WIDE)
    dv = tl.full([KEYS, VALUE_WIDTH], 0.0, WIDE)
    base2 = number(base2_scale, WIDE)
    for head in steps(0, sizes.group):
        query_head = tl.load(query_heads + group) + head
        at = (batch, tile, group, member + head, query_head, key_head)
        words = j
        if drawing is not None:
            words = key_words(drawing, batch, query_head, rows, inside)
        own = (j, j_in_block, here, words, k, v)
        start, stop, all_start, all_stop = query_span(visible, at, first, last, sizes.queries, CASE)
        plain, plain_count, masked, masked_count, gap_at, gap = walks(
            sparse, block, start, stop, all_start, all_stop, sizes.queries,
            visible.padding is not None, QUERIES,
        )  # fmt: skip
        dk, dv = _collect(
            dk, dv, own, grad_out, query, lse, delta, query_places, visible, sparse, drawing, at,
            sizes.queries, base2, plain, plain_count, 0, 0, CASE, False, D, DV, WIDTH,
            VALUE_WIDTH, QUERIES,
        )  # fmt: skip
        dk, dv = _collect(
            dk, dv, own, grad_out, query, lse, delta, query_places, visible, sparse, drawing, at,
            sizes.queries, base2, masked, masked_count, gap_at, gap, CASE, True, D, DV, WIDTH,
            VALUE_WIDTH, QUERIES,
        )  # fmt: skip
    dk = dk * number(scale, WIDE)
    if drawing is not None:
        dv = dv * number(drawing.share, WIDE)

    if not IN_PLACE:
        batch = batch * sizes.tiles + tile
        key_head = group
        rows = j.to(tl.int64)
    if FIRST:
        store_rows(grad_key, batch, key_head, rows, inside, dk, D, WIDTH)
        store_rows(grad_value, batch, key_head, rows, inside, dv, DV, VALUE_WIDTH)
    else:
        add_rows(grad_key, batch, key_head, rows, inside, dk, D, WIDTH)
        add_rows(grad_value, batch, key_head, rows, inside, dv, DV, VALUE_WIDTH)


@device
def _collect(
    dk, dv, own, grad_out, query, lse, delta, places, visible, sparse, drawing, at, queries, scale,
    first, count, gap_at, gap, CASE: tl.constexpr, MASKED: tl.constexpr, D: tl.constexpr,
    DV: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Takes in `count` blocks of queries, from `first` on, passing over `gap` of them.

    Pairs are key by query here: what multiplies from the left is then as the products leave it.
    """
    batch, tile, group, _, query_head, _ = at
    j, j_in_block, here, words, k, v = own
    for step in steps(0, count):
        block = first + step
        if MASKED:
            block = block + tl.where(step >= gap_at, gap, 0)
        i, i_in_block, inside, bitmap = block_rows(sparse, block, queries, QUERIES)
        rows = row_numbers(places, tile, group, i, inside)
        q = load_rows(query, batch, query_head, rows, inside, D, WIDTH)
        dO = load_rows(grad_out, batch, query_head, rows, inside, DV, VALUE_WIDTH)
        # Rows that are not there are as rows that see nothing.
        final = load_scalars(lse, batch, query_head, rows, inside, float("inf"))
        inner = load_scalars(delta, batch, query_head, rows, inside, 0.0)
        scores = tl.dot(k, tl.trans(q), input_precision="ieee", out_dtype=dk.dtype) * scale
        p = tl.exp2(scores - (final.to(dk.dtype) * LOG2_E)[None, :])
        if MASKED:
            low, high = row_bounds(visible, at, i, inside, CASE)
            seen = seen_pairs(
                visible, sparse, bitmap, at, i[None, :], j[:, None], i_in_block[None, :],
                j_in_block[:, None], low[None, :], high[None, :],
                here[:, None] & inside[None, :], CASE,
            )  # fmt: skip
            p = tl.where(seen, p, 0.0)
        dP = tl.dot(v, tl.trans(dO), input_precision="ieee", out_dtype=dk.dtype)
        kept = p
        if drawing is not None:
            query_word = query_words(drawing, batch, query_head, rows, inside)
            keep = is_kept(drawing, query_word[None, :], words[:, None])
            kept = tl.where(keep, p, 0.0)
            dP = tl.where(keep, dP * number(drawing.share, dk.dtype), 0.0)
        dv = tl.dot(kept.to(dO.dtype), dO, dv, input_precision="ieee", out_dtype=dk.dtype)
        dS = p * (dP - inner.to(dk.dtype)[None, :])
        dk = tl.dot(dS.to(q.dtype), q, dk, input_precision="ieee", out_dtype=dk.dtype)
    return dk, dv
