"""Sort keys of any number of machine words."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan_hilbert import Curve, Gilbert, Hilbert, Morton
from ringspan_hilbert.box import Box
from ringspan_hilbert.chunks import CHUNK, in_chunks
from ringspan_hilbert.interleave import bits_of_word, interleave
from ringspan_hilbert.skilling import hilbert_transpose
from ringspan_hilbert.sorting import sort_by_words

each_curve = pytest.mark.parametrize(
    "curve", [Hilbert(), Morton(), Gilbert()], ids=lambda curve: curve.name
)


def interleaved(point: tuple[int, ...], bits: int) -> int:
    """The key as one Python integer, of any length."""
    dealt = [f"{value:0{bits}b}" for value in point]
    return int("".join("".join(column) for column in zip(*dealt, strict=True)), 2)


def box_of(points: list[tuple[int, ...]], bits: int) -> Box:
    axes = tuple(torch.tensor(points, dtype=torch.int32).T)
    return Box(axes, tuple(2**bits for _ in axes))


@st.composite
def points_and_bits(draw: st.DrawFn) -> tuple[list[tuple[int, ...]], int]:
    bits = draw(st.integers(1, 31))
    axes = draw(st.integers(1, 3))
    # Few low bits between equal high ones, and the reverse, so that all words decide.
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
    order = sort_by_words(box_of(points, bits), Morton().keys)
    expected = sorted(range(len(points)), key=lambda i: interleaved(points[i], bits))
    assert order.tolist() == expected


@each_curve
@given(drawn=points_and_bits())
def test_only_different_points_with_equal_words_are_asked_for_more(
    curve: Curve, drawn: tuple[list[tuple[int, ...]], int]
) -> None:
    points, bits = drawn
    asked: list[int] = []

    def keys(box: Box, word: int) -> torch.Tensor:
        asked.append(len(box.axes[0]))
        return curve.keys(box, word)

    box = box_of(points, bits)
    order = sort_by_words(box, keys).tolist()
    # Some more words than any key has: what is left out is 0 for all.
    words = torch.stack([curve.keys(box, word) for word in range(6)]).T.tolist()
    assert order == sorted(range(len(points)), key=lambda i: words[i])
    for word, count in enumerate(asked):
        seen = [tuple(row[:word]) for row in words]
        points_of: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
        for prefix, point in zip(seen, points, strict=True):
            points_of.setdefault(prefix, set()).add(point)
        assert word == 0 or max(len(x) for x in points_of.values()) > 1
        assert count == len(points) if word == 0 else count == sum(seen.count(x) > 1 for x in seen)


@given(points_and_bits())
def test_interleaving_deals_the_bits_in_turn(drawn: tuple[list[tuple[int, ...]], int]) -> None:
    points, bits = drawn
    fitting = min(bits, 63 // len(points[0]))
    cut = [tuple(value % 2**fitting for value in point) for point in points]
    keys = interleave(list(torch.tensor(cut, dtype=torch.int32).T))
    assert keys.tolist() == [interleaved(point, fitting) for point in cut]


@given(bits=st.integers(1, 31), axes=st.integers(1, 3))
def test_the_words_of_a_key_hold_each_bit_once(bits: int, axes: int) -> None:
    held = [range(*bits_of_word(word, bits, axes)) for word in range(4)]
    assert sorted(bit for word in held for bit in word) == list(range(bits))
    assert all(len(word) * axes <= 63 for word in held)


@each_curve
@given(drawn=points_and_bits())
def test_words_are_never_negative(curve: Curve, drawn: tuple[list[tuple[int, ...]], int]) -> None:
    box = box_of(*drawn)
    assert all((curve.keys(box, word) >= 0).all() for word in range(4))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@given(drawn=points_and_bits())
def test_the_transpose_stays_in_the_box_and_leaves_its_arguments_alone(
    dtype: torch.dtype, drawn: tuple[list[tuple[int, ...]], int]
) -> None:
    points, bits = drawn
    axes = list(torch.tensor(points, dtype=dtype).T)
    for digits in hilbert_transpose(axes, bits):
        assert digits.dtype == dtype
        assert ((digits >= 0) & (digits < 2**bits)).all()
    assert torch.equal(torch.stack(axes), torch.tensor(points, dtype=dtype).T)


@each_curve
@given(drawn=points_and_bits())
def test_different_points_have_different_keys(
    curve: Curve, drawn: tuple[list[tuple[int, ...]], int]
) -> None:
    points, bits = drawn
    box = box_of(points, bits)
    words = torch.stack([curve.keys(box, word) for word in range(4)]).T
    assert len({tuple(row) for row in words.tolist()}) == len(set(points))


@each_curve
def test_points_in_many_chunks_have_the_keys_of_each_alone(curve: Curve) -> None:
    generator = torch.Generator().manual_seed(0)
    axes = torch.randint(0, 1000, (3, 2 * CHUNK + 5), generator=generator, dtype=torch.int32)
    whole = curve.keys(Box(tuple(axes), (1000, 1000, 1000)), 0)
    some = slice(CHUNK - 3, CHUNK + 4)
    assert torch.equal(whole[some], curve.keys(Box(tuple(axes[:, some]), (1000,) * 3), 0))


def test_chunks_are_as_long_as_they_are_said_to_be() -> None:
    lengths: list[int] = []

    def first(axes: object) -> torch.Tensor:
        (axis,) = axes  # type: ignore[misc]
        lengths.append(len(axis))
        return axis.long()

    axis = torch.arange(2 * CHUNK + 5)
    assert torch.equal(in_chunks(first, [axis]), axis)
    assert lengths == [CHUNK, CHUNK, 5]
