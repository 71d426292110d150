"""Pieces of a result as one tensor: every row finds its pieces, reads each once, is written once.

Nothing is added to memory, so nothing is zeroed and no two pieces wait for each other. Where a
piece is, follows from its selection: by arithmetic where rows are affine, else from an inverse
table that is made once.
"""

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, import-untyped"
from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from ringspan.contracts import InvalidArgument, Piece
from ringspan.contracts.adapters.arguments import with_last_stride_one
from ringspan.contracts.selection import Selection
from ringspan.contracts.work import Affine

from ringspan_triton.descriptors import current, inverse, nested, table, unit
from ringspan_triton.interpreting import INTERPRETED, device

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Float
    from torch import Tensor

__all__ = ["merge"]

AT_ONCE = 16
"""Most pieces of one launch, what was merged before among them."""
ELEMENTS = 4096
"""Of one program, all in registers."""
WIDE = {torch.float32: tl.float32, torch.float64: tl.float64}

FIELDS = tl.constexpr(16)
(START, HEAD_STEP, INDEXED, TILES_OUTER, OUTER_STEP, INNER_STEP, OUTER, INNER) = (
    tl.constexpr(field) for field in range(8)
)
(TILES, GROUP, X_TILE, X_ROW, X_HEAD, LSE_TILE, LSE_HEAD, LSE_ROW) = (
    tl.constexpr(field) for field in range(8, 16)
)


def merge(
    pieces: Sequence[Piece],
    shape: tuple[int, int, int, int],
    *,
    dtype: torch.dtype,
    sink: Float[Tensor, "H rows"] | None = None,
    base: Piece | None = None,
) -> tuple[Float[Tensor, "B N H D"], Float[Tensor, "B H N"] | None]:
    """All pieces as one tensor, in one launch for up to sixteen of them.

    Sums are in float32 (float64 where any tensor is), and rounded once.

    Args:
        pieces: all with an `lse`, and merged by it, or all without, and added. A row may be in any
            number of them, and in no piece twice.
        shape: of the result, `[B, N, H, D]`.
        dtype: of the result.
        sink: logits in each row's normaliser, by head and row (or one for all rows).
        base: what was merged before, for all rows: `x` `[B, N, H, D]` and `lse` `[B, H, N]`.

    Returns:
        The tensor, contiguous, and the merged `lse` where there are any. A row of no piece is 0
        with an `lse` of -inf, or of its sink.

    Raises:
        InvalidArgument: some with an `lse` and some without, a sink without one, a piece that does
            not fit its selection, or one that has a row twice; nothing at all to merge.

    Example:
        >>> whole = Selection(Affine(0, 0, 0, 1), (0,), tiles=1, length=2)
        >>> x, lse = torch.ones(1, 2, 1, 1), torch.zeros(1, 1, 2)
        >>> sink = torch.zeros(1, 1)
        >>> out, total = merge(
        ...     [Piece(whole, x, lse)], (1, 2, 1, 1), dtype=torch.float32, sink=sink
        ... )
        >>> out.flatten(), total.exp().flatten()
        (tensor([0.5000, 0.5000]), tensor([2., 2.]))
    """
    everything = Selection(Affine(0, 0, 0, 1), (0,), tiles=1, length=shape[1], group=shape[2])
    given = list(pieces) if base is None else [base._replace(rows=everything), *pieces]
    with_lse = _with_lse(given, sink)
    _check_shapes(given, shape)
    found = [piece for piece in given if piece.x.numel()]
    wide = _wide(found, sink, dtype)
    if not found or 0 in shape:
        return _of_no_piece(given, shape, dtype, wide, sink if with_lse else None, with_lse)
    while len(found) > AT_ONCE:
        so_far = _launch(found[:AT_ONCE], shape, wide, wide, sink)
        found, sink = [Piece(everything, *so_far), *found[AT_ONCE:]], None
    return _launch(found, shape, dtype, wide, sink)


def _with_lse(given: Sequence[Piece], sink: Tensor | None) -> bool:
    kinds = {piece.lse is not None for piece in given} | ({True} if sink is not None else set())
    if len(kinds) > 1:
        raise InvalidArgument(
            "pieces",
            expected="an lse with all of them and with the base, or with none and no sink",
            got="both kinds",
        )
    if not given and sink is None:
        raise InvalidArgument(
            "pieces", expected="a piece, a base or a sink", got="nothing that has a device"
        )
    return True in kinds


def _check_shapes(given: Sequence[Piece], shape: tuple[int, int, int, int]) -> None:
    batch, _, _, width = shape
    for rows, x, lse in given:
        tiles, heads = batch * rows.tiles, len(rows.heads) * rows.group
        expected = (tiles, rows.length, heads, width)
        if x.shape != expected:
            raise InvalidArgument("pieces", expected=f"x {list(expected)}", got=f"{list(x.shape)}")
        if lse is not None and lse.shape != (tiles, heads, rows.length):
            raise InvalidArgument(
                "pieces",
                expected=f"lse {[tiles, heads, rows.length]}",
                got=f"{list(lse.shape)}",
            )


def _wide(found: Sequence[Piece], sink: Tensor | None, dtype: torch.dtype) -> torch.dtype:
    wide = torch.promote_types(dtype, torch.float32)
    for _, x, lse in found:
        wide = torch.promote_types(wide, x.dtype)
        wide = wide if lse is None else torch.promote_types(wide, lse.dtype)
    return wide if sink is None else torch.promote_types(wide, sink.dtype)


def _of_no_piece(
    given: Sequence[Piece],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    wide: torch.dtype,
    sink: Tensor | None,
    with_lse: bool,
) -> tuple[Tensor, Tensor | None]:
    batch, rows, heads, _ = shape
    where = given[0].x.device if sink is None else sink.device
    out = torch.zeros(shape, dtype=dtype, device=where)
    if not with_lse:
        return out, None
    lse = torch.full((batch, heads, rows), -torch.inf, dtype=wide, device=where)
    return out, lse if sink is None else lse.copy_(sink)


def _launch(
    pieces: Sequence[Piece],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    wide: torch.dtype,
    sink: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    batch, rows, heads, width = shape
    where = pieces[0].x.device
    # The interpreter cuts what it should round.
    stored = wide if INTERPRETED.value and dtype == torch.bfloat16 else dtype
    out = torch.empty(shape, dtype=stored, device=where)
    lse = None
    if pieces[0].lse is not None:
        lse = torch.empty((batch, heads, rows), dtype=wide, device=where)
    values = tuple(with_last_stride_one(x.detach()) for _, x, _ in pieces)
    sums = tuple(out if x is None else x.detach() for _, _, x in pieces)
    step = unit(width, *(stride for x in values for stride in x.stride()[:-1]))
    lines = tuple(_line(piece, x, step) for piece, x in zip(pieces, values, strict=True))
    descriptors = table(_descriptors(lines, tuple(piece.rows for piece in pieces), heads), where)
    inverses = tuple(
        inverse(piece.rows, rows, where) if line[INDEXED.value] else descriptors
        for piece, line in zip(pieces, lines, strict=True)
    )
    columns = triton.next_power_of_2(width)
    some = min(triton.next_power_of_2(rows), max(1, ELEMENTS // columns))
    blocks = -(-rows // some)
    with current(out):
        _merge[(batch * heads * blocks,)](
            descriptors,
            out,
            out if lse is None else lse,
            values,
            sums,
            inverses,
            out if sink is None else sink,
            0 if sink is None else sink.stride(0),
            0 if sink is None or sink.shape[1] == 1 else sink.stride(1),
            rows,
            heads,
            blocks,
            COUNT=len(pieces),
            WITH_LSE=lse is not None,
            WITH_SINK=sink is not None,
            WIDE=WIDE[wide],
            WIDTH=width,
            UNIT=step,
            ROWS=some,
            COLUMNS=columns,
        )
    return out.to(dtype), lse


def _line(piece: Piece, x: Tensor, step: int) -> tuple[int, ...]:
    """What `_find` and `_merge` need to know of a piece: `FIELDS` numbers."""
    selection, _, lse = piece
    steps, rows = nested(selection), selection.rows
    if steps is None or not isinstance(rows, Affine):
        places = rows.rows.shape[1] if not isinstance(rows, Affine) else len(selection.heads)
        # What an inverse table holds is t * L + l: split like rows of tiles in a row.
        counts = (selection.tiles, selection.length)
        reach = (0, int(places > 1), 1, 1, selection.length, 1, *counts)
    else:
        tiles_outer, outer, inner = steps
        counts = (selection.tiles, selection.length)
        counts = counts if tiles_outer else counts[::-1]
        reach = (rows.start, rows.head_step, 0, int(tiles_outer), outer, inner, *counts)
    strides = (0, 0, 0) if lse is None else lse.stride()
    return (
        *reach,
        selection.tiles,
        selection.group,
        *(stride // step for stride in x.stride()[:-1]),
        *strides,
    )


def _descriptors(
    lines: Sequence[tuple[int, ...]], selections: Sequence[Selection], heads: int
) -> tuple[int, ...]:
    """The line of each piece, and behind them where each has each head, or -1."""
    numbers = [number for line in lines for number in line]
    for selection in selections:
        places = [-1] * heads
        for group, first in enumerate(selection.heads):
            for head in range(selection.group):
                places[first + head] = group * selection.group + head
        numbers += places
    return tuple(numbers)


@triton.jit
def _merge(
    descriptors,
    out,
    out_lse,
    values,
    sums,
    inverses,
    sink,
    sink_head,
    sink_row,
    rows,
    heads,
    blocks,
    COUNT: tl.constexpr,
    WITH_LSE: tl.constexpr,
    WITH_SINK: tl.constexpr,
    WIDE: tl.constexpr,
    WIDTH: tl.constexpr,
    UNIT: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Some rows of one head. Neighbouring programs write neighbouring heads."""
    program = tl.program_id(0)
    head = program % heads
    block = program // heads
    sequence = (block // blocks).to(tl.int64)
    row = block % blocks * ROWS + tl.arange(0, ROWS)
    there = row < rows
    column = tl.arange(0, COLUMNS)
    inside = (column < WIDTH)[None, :]

    total = tl.zeros((ROWS, COLUMNS), WIDE)
    top = tl.full((ROWS,), float("-inf"), WIDE)
    normaliser = tl.zeros((ROWS,), WIDE)
    if WITH_SINK:
        logit = tl.load(sink + head * sink_head + row * sink_row, mask=there, other=float("-inf"))
        top = logit.to(WIDE)
        normaliser = tl.where(top > float("-inf"), 1.0, 0.0).to(WIDE)
    for number in tl.static_range(COUNT):
        line = descriptors + number * FIELDS
        own_head = tl.load(descriptors + COUNT * FIELDS + number * heads + head)
        if own_head >= 0:
            found, tile, place = _find(line, inverses[number], own_head, row, rows)
            found = found & there
            tile += sequence * tl.load(line + TILES)
            at = (
                tile * tl.load(line + X_TILE)
                + place * tl.load(line + X_ROW)
                + own_head * tl.load(line + X_HEAD)
            ) * UNIT
            seen = found[:, None] & inside
            x = tl.load(values[number] + at[:, None] + column[None, :], mask=seen, other=0.0)
            x = x.to(WIDE)
            if WITH_LSE:
                at_lse = (
                    tile * tl.load(line + LSE_TILE)
                    + place * tl.load(line + LSE_ROW)
                    + own_head * tl.load(line + LSE_HEAD)
                )
                own = tl.load(sums[number] + at_lse, mask=found, other=float("-inf")).to(WIDE)
                total, top, normaliser = _taken(total, top, normaliser, x, own)
            else:
                total += x
    if WITH_LSE:
        empty = normaliser == 0
        normaliser = tl.where(empty, 1.0, normaliser)
        total = total / normaliser[:, None]
        at_lse = (sequence * heads + head) * rows + row
        tl.store(out_lse + at_lse, top + tl.log(normaliser), mask=there)
    written = ((sequence * rows + row) * heads + head) * WIDTH
    tl.store(
        out + written[:, None] + column[None, :],
        total.to(out.dtype.element_ty),
        mask=there[:, None] & inside,
    )


@device
def _find(line, places, own_head, row, rows):
    """Whether the piece has each row, and as which row of which tile."""
    group = own_head // tl.load(line + GROUP)
    if tl.load(line + INDEXED) != 0:
        at = places + group * tl.load(line + HEAD_STEP) * rows + row
        ahead = tl.load(at, mask=row < rows, other=-1).to(tl.int32)
    else:
        ahead = row - (tl.load(line + START) + group * tl.load(line + HEAD_STEP)).to(tl.int32)
    outer_step = tl.load(line + OUTER_STEP).to(tl.int32)
    inner_step = tl.load(line + INNER_STEP).to(tl.int32)
    outer = ahead // outer_step
    left = ahead - outer * outer_step
    inner = left // inner_step
    fits = (outer < tl.load(line + OUTER)) & (inner < tl.load(line + INNER))
    found = (ahead >= 0) & fits & (inner * inner_step == left)
    tiles_outer = tl.load(line + TILES_OUTER) != 0
    tile = tl.where(tiles_outer, outer, inner).to(tl.int64)
    place = tl.where(tiles_outer, inner, outer).to(tl.int64)
    return found, tile, place


@device
def _taken(total, top, normaliser, x, own):
    """One more piece in each row. A row of nothing moves nothing, also where all are -inf."""
    higher = tl.maximum(top, own)
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    before, share = tl.exp(top - shift), tl.exp(own - shift)
    # What a row without keys holds may be anything: it must not reach the sum.
    added = tl.where((own > float("-inf"))[:, None], x * share[:, None], 0.0)
    return total * before[:, None] + added, higher, normaliser * before + share
