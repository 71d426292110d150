"""Gathers and merges: every row is where the definition of its selection puts it."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.contracts import InvalidArgument, Piece, Placed
from ringspan.contracts.selection import Selection
from ringspan.contracts.work import Affine, Indexed
from ringspan.testing.suites.pieces import MergingOperands
from ringspan.testing.suites.rows import listed
from ringspan_triton import descriptors
from ringspan_triton.gather import gather
from ringspan_triton.merge import AT_ONCE, merge
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
some_examples = settings(deadline=None, max_examples=40, derandomize=True)


def places(selection: Selection) -> tuple[Tensor, Tensor]:
    """Rows and heads of a piece, each `[T, L, K * G]`."""
    group = torch.arange(selection.group)
    heads = (torch.tensor(selection.heads)[:, None] + group).flatten()
    rows = listed(selection).repeat_interleave(selection.group, 1).transpose(1, 2)
    return rows, heads.expand(rows.shape)


@st.composite
def selections(draw: st.DrawFn, heads: int) -> Selection:
    """Runs, dilated rows, interleaved tiles and rows from a table, for some of the heads."""
    group = draw(st.sampled_from([size for size in (1, 2, 3) if size <= heads]))
    chosen, first = [], 0
    while first + group <= heads:
        if draw(st.booleans()) or (not chosen and first + 2 * group > heads):
            chosen.append(first)
            first += group
        else:
            first += 1
    tiles, length = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    kind = draw(st.sampled_from(("runs", "dilated", "interleaved", "tangled", "indexed")))
    step, head_step = draw(st.integers(1, 4)), draw(st.integers(0, 2))
    start = draw(st.integers(0, 3))
    if kind == "indexed":
        own = draw(st.sampled_from((1, len(chosen))))
        generator = np.random.default_rng(draw(st.integers(0, 99)))
        drawn = [generator.permutation(tiles * length + start) for _ in range(own)]
        table = np.stack([one[: tiles * length].reshape(tiles, length) for one in drawn], 1)
        return Selection(Indexed(table), tuple(chosen), tiles, length, group)
    if kind == "dilated":  # segments of any length, of which every few-th row is left
        width = (length - 1) * step + draw(st.integers(1, step))
        rows = Affine(start, width, head_step, step)
    elif kind == "interleaved":
        rows = Affine(start, head_step + 1, head_step, (head_step + 1) * tiles + step - 1)
    elif kind == "tangled":  # 0 2 4 and 3 5 7
        tiles, length, rows = 2, 3, Affine(start, 3, head_step, 2)
    else:
        rows = Affine(start, length + step - 1, head_step, 1)
    return Selection(rows, tuple(chosen), tiles, length, group)


def tokens(chosen: Sequence[Selection]) -> int:
    return max(int(listed(one).max()) + 1 for one in chosen)


def drawn(shape: Sequence[int], dtype: torch.dtype, seed: int, *, apart: bool) -> Tensor:
    """Normal numbers, contiguous or with NaN between them."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(DEVICE, dtype)
    if not apart:
        return x
    roomy = torch.full((*(2 * size for size in shape[:-1]), shape[-1] + 3), torch.nan)
    roomy = roomy.to(x).transpose(0, 1).contiguous().transpose(0, 1)
    view = roomy[(*(slice(1, 2 * size, 2) for size in shape[:-1]), slice(shape[-1]))]
    return view.copy_(x)


# Gathers


@given(data=st.data(), dtype=st.sampled_from(DTYPES), apart=st.booleans())
@some_examples
def test_gathered_rows_are_those_of_the_selections(
    data: st.DataObject, dtype: torch.dtype, apart: bool
) -> None:
    placed = []
    for number in range(data.draw(st.integers(1, 3))):
        heads, width = data.draw(st.integers(1, 5)), data.draw(st.sampled_from((1, 5, 8)))
        rows = data.draw(selections(heads))
        batch = data.draw(st.integers(1, 2))
        shape = (batch, tokens([rows]) + number, heads, width)
        placed.append(Placed(rows, drawn(shape, dtype, number, apart=apart)))
    for (rows, x), found in zip(placed, gather(*placed), strict=True):
        at, heads = places(rows)
        expected = x[:, at, heads].flatten(0, 1)
        assert found.is_contiguous()
        assert found.dtype == x.dtype
        assert torch.equal(found, expected)


def test_several_widths_of_elements_and_more_tensors_than_one_launch_takes_are_gathered() -> None:
    rows = Selection(Affine(0, 4, 0, 1), (0, 2), tiles=2, length=4)
    x = torch.randn(1, 8, 3, 4, device=DEVICE)
    placed = [Placed(rows, x.to(dtype) + i) for i in range(5) for dtype in DTYPES]
    for (_, source), found in zip(placed, gather(*placed), strict=True):
        assert torch.equal(found, source[:, :, [0, 2]].reshape(2, 4, 2, 4))


def test_a_last_stride_other_than_one_is_gathered_rightly() -> None:
    rows = Selection(Affine(0, 0, 0, 2), (0,), tiles=1, length=4)
    x = torch.randn(1, 8, 6, 1, device=DEVICE).transpose(2, 3)
    (found,) = gather(Placed(rows, x))
    assert torch.equal(found, x[:, ::2])


@pytest.mark.parametrize(("tiles", "length", "batch"), [(0, 4, 1), (2, 0, 1), (2, 4, 0)])
def test_gathering_nothing_gives_nothing(tiles: int, length: int, batch: int) -> None:
    rows = Selection(Affine(0, 4, 0, 1), (0,), tiles, length)
    (found,) = gather(Placed(rows, torch.randn(batch, 8, 1, 4, device=DEVICE)))
    assert found.shape == (batch * tiles, length, 1, 4)


# Merges


def piece_of(
    rows: Selection, batch: int, width: int, dtype: torch.dtype, seed: int, *, apart: bool
) -> Piece:
    """Random values, and sums of which some are empty beside values that are not to be read."""
    heads = len(rows.heads) * rows.group
    x = drawn((batch * rows.tiles, rows.length, heads, width), dtype, seed, apart=apart)
    wide = torch.promote_types(dtype, torch.float32)
    lse = 5 * drawn((batch * rows.tiles, heads, rows.length), wide, seed + 1, apart=apart)
    lse[lse < -4] = -torch.inf
    x.masked_fill_((lse == -torch.inf).transpose(1, 2)[..., None], torch.nan)
    return Piece(rows, x, lse)


def added(piece: Piece) -> Piece:
    return piece._replace(x=piece.x.nan_to_num(1.0), lse=None)


def everything(rows: int, heads: int) -> Selection:
    return Selection(Affine(0, 0, 0, 1), (0,), tiles=1, length=rows, group=heads)


def check(
    pieces: Sequence[Piece],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    sink: Tensor | None = None,
    base: Piece | None = None,
) -> None:
    out, lse = merge(pieces, shape, dtype=dtype, sink=sink, base=base)
    said = tuple(readable(piece) for piece in pieces)
    known = None if base is None else readable(base)
    MergingOperands(said, shape, dtype, sink, known).assert_merged(out, lse)


def readable(piece: Piece) -> Piece:
    """Zeros where a kernel must not read, which the formula multiplies by zero."""
    return piece._replace(x=piece.x.nan_to_num(0.0))


@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
    apart=st.booleans(),
    by_lse=st.booleans(),
    sinks=st.sampled_from((None, "rows", "one")),
    with_base=st.booleans(),
)
@some_examples
def test_any_merge_is_that_of_the_formula(
    data: st.DataObject,
    dtype: torch.dtype,
    apart: bool,
    by_lse: bool,
    sinks: str | None,
    with_base: bool,
) -> None:
    heads, batch = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 2))
    width = data.draw(st.sampled_from((1, 5, 8)))
    chosen = data.draw(st.lists(selections(heads), min_size=1, max_size=4))
    rows = tokens(chosen) + data.draw(st.integers(0, 2))
    pieces = [
        piece_of(one, batch, width, dtype, 2 * seed, apart=apart) for seed, one in enumerate(chosen)
    ]
    whole = everything(rows, heads)
    base = piece_of(whole, batch, width, torch.promote_types(dtype, torch.float32), 77, apart=apart)
    if not by_lse:
        pieces, base = [added(piece) for piece in pieces], added(base)
    given: dict[str, Any] = {"base": base} if with_base else {}
    if sinks is not None and by_lse:
        wide = torch.promote_types(dtype, torch.float32)
        sink = drawn((heads, rows if sinks == "rows" else 1), wide, 99, apart=apart)
        sink[0, ::2] = -torch.inf
        given["sink"] = sink
    check(pieces, (batch, rows, heads, width), dtype, **given)


def dilated(rate: int, segment: int, count: int, heads: int) -> list[Selection]:
    """Every `rate`-th row of each segment, each head one further on: segments need not divide."""
    return [
        Selection(Affine(first, segment, 0, rate), (head,), count, -(-(segment - first) // rate))
        for head in range(heads)
        for first in [head % rate]
        if first < segment
    ]


@each_dtype
def test_dilated_branches_of_segments_that_their_rate_does_not_divide_merge(
    dtype: torch.dtype,
) -> None:
    chosen = [*dilated(1, 6, 7, 3), *dilated(2, 21, 2, 3), *dilated(4, 42, 1, 3)]
    pieces = [piece_of(one, 2, 8, dtype, seed, apart=False) for seed, one in enumerate(chosen)]
    check(pieces, (2, 42, 3, 8), dtype)


@each_dtype
def test_what_is_rounded_is_rounded_once_and_to_the_nearest(dtype: torch.dtype) -> None:
    rows = everything(4, 2)
    terms = [drawn((1, 4, 2, 8), torch.float32, seed, apart=False) for seed in range(3)]
    out, lse = merge([Piece(rows, x) for x in terms], (1, 4, 2, 8), dtype=dtype)
    wide = torch.promote_types(dtype, torch.float32)
    expected = terms[0].to(wide) + terms[1].to(wide) + terms[2].to(wide)
    assert torch.equal(out, expected.to(dtype))
    assert lse is None


@pytest.mark.parametrize("by_lse", [True, False], ids=["by lse", "added"])
def test_more_pieces_than_one_launch_takes_merge_with_one_rounding(by_lse: bool) -> None:
    whole = everything(5, 2)
    pieces = [
        piece_of(whole, 1, 4, torch.bfloat16, seed, apart=False) for seed in range(2 * AT_ONCE + 3)
    ]
    sink = drawn((2, 1), torch.float32, 5, apart=False) if by_lse else None
    pieces = pieces if by_lse else [added(piece) for piece in pieces]
    check(pieces, (1, 5, 2, 4), torch.bfloat16, sink=sink)


def test_a_row_in_one_piece_alone_is_copied_bit_by_bit() -> None:
    rows = Selection(Affine(0, 4, 0, 2), (0, 1), tiles=2, length=2)
    piece = piece_of(rows, 1, 8, torch.float32, 3, apart=False)
    assert piece.lse is not None
    piece = Piece(rows, piece.x.nan_to_num(), piece.lse.clamp(min=-1.0))
    out, lse = merge([piece], (1, 8, 2, 8), dtype=torch.float32)
    assert lse is not None
    assert torch.equal(out[:, ::2], piece.x.reshape(1, 4, 2, 8))
    assert torch.equal(lse[..., ::2], piece.lse.permute(1, 0, 2).reshape(1, 2, 4))
    assert (out[:, 1::2] == 0).all()
    assert (lse[..., 1::2] == -torch.inf).all()


@pytest.mark.parametrize("size", [1e4, -1e4])
def test_sums_of_any_size_merge_without_overflow(size: float) -> None:
    whole = everything(3, 1)
    pieces = [piece_of(whole, 1, 4, torch.float64, seed, apart=False) for seed in range(2)]
    far = [piece._replace(lse=piece.lse + size) for piece in pieces if piece.lse is not None]
    check(far, (1, 3, 1, 4), torch.float64)


def test_a_sink_counts_once_and_alone_leaves_zero() -> None:
    rows = Selection(Affine(0, 0, 0, 1), (0,), tiles=1, length=2)
    piece = Piece(rows, torch.ones(1, 2, 1, 1), torch.zeros(1, 1, 2))
    piece = Piece(rows, *(x.to(DEVICE) for x in piece[1:] if x is not None))
    sink = torch.zeros(1, 1, device=DEVICE)
    out, lse = merge([piece], (1, 3, 1, 1), dtype=torch.float32, sink=sink)
    assert lse is not None
    assert out.flatten().tolist() == [0.5, 0.5, 0.0]
    assert lse.exp().flatten().tolist() == pytest.approx([2.0, 2.0, 1.0])


def test_pieces_of_no_row_change_nothing() -> None:
    none = (
        Selection(Affine(0, 4, 0, 1), (0,), tiles=0, length=4),
        Selection(Affine(0, 4, 0, 1), (0,), tiles=2, length=0),
        Selection(Affine(0, 4, 0, 1), (), tiles=2, length=4),
    )
    empty = [piece_of(one, 1, 4, torch.float32, 0, apart=False) for one in none]
    out, lse = merge(empty, (1, 8, 2, 4), dtype=torch.float16)
    assert lse is not None
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    some = piece_of(everything(8, 2), 1, 4, torch.float32, 0, apart=False)
    for found, alone in zip(
        merge([*empty, some], (1, 8, 2, 4), dtype=torch.float32),
        merge([some], (1, 8, 2, 4), dtype=torch.float32),
        strict=True,
    ):
        assert found is not None
        assert alone is not None
        assert torch.equal(found, alone)


# What is kept, and what is refused


class Copies(TorchDispatchMode):
    """Tensors made from numbers of the host, or moved; the interpreter itself copies in place."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if function.overloadpacket.__name__ in ("_to_copy", "lift_fresh", "clone"):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_repeated_call_copies_nothing_to_the_device() -> None:
    table = np.arange(12).reshape(2, 1, 6)[..., ::-1].copy()
    chosen = [
        Selection(Affine(0, 6, 0, 1), (0, 1), tiles=2, length=6),
        Selection(Affine(0, 3, 0, 2), (0,), tiles=2, length=3),
        Selection(Indexed(table), (0, 1), tiles=2, length=6),
    ]
    x = drawn((1, 12, 2, 4), torch.float32, 0, apart=False)
    found = []
    for _ in range(2):
        pieces = [piece_of(one, 1, 4, torch.float32, 0, apart=False) for one in chosen]
        placed = [Placed(one, x.clone()) for one in chosen]
        with Copies() as copies:
            gather(*placed)
            merge(pieces, (1, 12, 2, 4), dtype=torch.float32)
        found.append(copies.found)
    assert found[0]
    assert not found[1]


def test_an_inverse_table_lives_as_long_as_its_rows() -> None:
    rows = Selection(Indexed(np.arange(4).reshape(1, 1, 4)), (0,), tiles=1, length=4)
    before = len(descriptors._inverses)
    first = descriptors.inverse(rows, 6, DEVICE)
    assert first is descriptors.inverse(replace(rows, group=2), 6, DEVICE)
    assert first.tolist() == [[0, 1, 2, 3, -1, -1]]
    assert len(descriptors._inverses) == before + 1
    del rows
    gc.collect()
    assert len(descriptors._inverses) == before


def test_a_row_twice_in_a_piece_is_refused() -> None:
    twice = Selection(Affine(0, 2, 0, 1), (0,), tiles=2, length=4, overlap=True)
    piece = piece_of(twice, 1, 4, torch.float32, 0, apart=False)
    with pytest.raises(InvalidArgument, match="every row at most once"):
        merge([piece], (1, 8, 1, 4), dtype=torch.float32)


def test_a_row_beyond_the_result_is_refused() -> None:
    far = Selection(Indexed(np.arange(3, 7).reshape(1, 1, 4)), (0,), tiles=1, length=4)
    piece = piece_of(far, 1, 4, torch.float32, 0, apart=False)
    with pytest.raises(InvalidArgument, match=r"rows 0..5, got rows 3..6"):
        merge([piece], (1, 6, 1, 4), dtype=torch.float32)


def test_pieces_with_and_without_sums_are_refused_together() -> None:
    piece = piece_of(everything(3, 1), 1, 4, torch.float32, 0, apart=False)
    with pytest.raises(InvalidArgument, match="both kinds"):
        merge([piece, added(piece)], (1, 3, 1, 4), dtype=torch.float32)


def test_a_sink_without_sums_is_refused() -> None:
    piece = added(piece_of(everything(3, 1), 1, 4, torch.float32, 0, apart=False))
    with pytest.raises(InvalidArgument, match="no sink"):
        merge([piece], (1, 3, 1, 4), dtype=torch.float32, sink=torch.zeros(1, 1, device=DEVICE))


def test_a_piece_that_does_not_fit_its_selection_is_refused() -> None:
    piece = piece_of(everything(3, 1), 1, 4, torch.float32, 0, apart=False)
    with pytest.raises(InvalidArgument, match=r"x \[1, 3, 1, 8\], got \[1, 3, 1, 4\]"):
        merge([piece], (1, 3, 1, 8), dtype=torch.float32)


def test_nothing_to_merge_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="nothing that has a device"):
        merge([], (1, 3, 1, 4), dtype=torch.float32)
