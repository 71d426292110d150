"""Sort keys longer than a machine word."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan_hilbert.interleave import interleave, sort_by_interleaved_bits
from ringspan_hilbert.skilling import hilbert_transpose


def interleaved(point: tuple[int, ...], bits: int) -> int:
    """The key as one Python integer, of any length."""
    dealt = [f"{value:0{bits}b}" for value in point]
    return int("".join("".join(column) for column in zip(*dealt, strict=True)), 2)


@st.composite
def points_and_bits(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], int]:
    bits = draw(st.integers(1, 31))
    axes = draw(st.integers(1, 3))
    # Few low bits between equal high ones, and the reverse, so that both words decide.
    high = draw(st.integers(0, 2**bits - 1))
    value = st.one_of(
        st.integers(0, 2**bits - 1), st.integers(0, 3).map(lambda low: (high & ~3 | low) % 2**bits)
    )
    return draw(st.lists(st.tuples(*[value] * axes), min_size=1, max_size=20)), bits


@given(points_and_bits())
def test_sorting_by_words_equals_sorting_by_the_whole_key(
    drawn: tuple[list[tuple[int, ...]], int],
) -> None:
    points, bits = drawn
    order = sort_by_interleaved_bits(list(torch.tensor(points).T), bits)
    expected = sorted(range(len(points)), key=lambda i: interleaved(points[i], bits))
    assert order.tolist() == expected


@given(points_and_bits())
def test_a_key_that_fits_one_word_is_never_negative(
    drawn: tuple[list[tuple[int, ...]], int],
) -> None:
    points, bits = drawn
    fitting = min(bits, 63 // len(points[0]))
    keys = interleave(list(torch.tensor(points).T), 0, fitting)
    cut = [tuple(value % 2**fitting for value in point) for point in points]
    assert keys.tolist() == [interleaved(point, fitting) for point in cut]


@given(points_and_bits())
def test_the_transpose_stays_in_the_box_and_leaves_its_arguments_alone(
    drawn: tuple[list[tuple[int, ...]], int],
) -> None:
    points, bits = drawn
    axes = list(torch.tensor(points).T)
    for digits in hilbert_transpose(axes, bits):
        assert ((digits >= 0) & (digits < 2**bits)).all()
    assert torch.equal(torch.stack(axes), torch.tensor(points).T)


@given(points_and_bits())
def test_different_points_have_different_indices(
    drawn: tuple[list[tuple[int, ...]], int],
) -> None:
    points, bits = drawn
    digits = torch.stack(hilbert_transpose(list(torch.tensor(points).T), bits)).T
    assert len({tuple(row) for row in digits.tolist()}) == len(set(points))
