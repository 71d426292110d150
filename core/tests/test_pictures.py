"""Pictures of patterns count exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan import BlockSparse, Coordinates, Dense, Dilated, Grid, Neighborhood, pictures
from ringspan.contracts import Pattern, Sequence, Tokens
from ringspan.errors import InvalidArgument
from ringspan.testing import multiplicity


def literal_mask(pattern: Dilated, N: int, head: int, causal: bool) -> np.ndarray:
    i, j = np.indices((N, N))
    mask = np.zeros((N, N), dtype=np.int64)
    for w, r in zip(pattern.segment_lengths, pattern.dilation_rates, strict=True):
        mask += (i // w == j // w) & (i % w % r == head % r) & (j % w % r == head % r)
    return np.tril(mask) if causal else mask


@given(
    N=st.integers(1, 60),
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=3),
    head=st.integers(0, 2),
    causal=st.booleans(),
    data=st.data(),
)
def test_every_pixel_counts_the_pairs_that_fall_in_it(
    N: int, lengths: list[int], head: int, causal: bool, data: st.DataObject
) -> None:
    rates = tuple(data.draw(st.integers(1, length)) for length in lengths)
    pixels = data.draw(st.integers(1, N))
    pattern = Dilated(tuple(lengths), rates)
    mask = literal_mask(pattern, N, head, causal)
    pixel = np.arange(N) * pixels // N
    expected = np.zeros((pixels, pixels), dtype=np.int64)
    np.add.at(expected, (pixel[:, None], pixel[None]), mask)
    counts = pictures.pairs_per_pixel(
        pattern, Sequence(N), kv_heads=3, head=head, causal=causal, pixels=pixels
    )
    assert np.array_equal(counts, expected)


FAR = Coordinates([[i * 7 % 40, i * 3 % 40] for i in range(60)])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("pixels", [1, 7, 60])
@pytest.mark.parametrize(
    ("pattern", "tokens", "defined"),
    [
        (Dense(), Sequence(60), multiplicity.dense(60)),
        (Dense(window=(5, 2)), Sequence(60), multiplicity.dense(60, window=(5, 2))),
        (
            Neighborhood(3, 2),
            Grid(10, 6),
            multiplicity.neighborhood(
                torch.tensor(Grid(10, 6).coordinates), [3, 3], [2, 2], [1, 1]
            ),
        ),
        (
            Neighborhood(9),
            FAR,
            multiplicity.neighborhood(torch.tensor(FAR.coordinates), [9, 9], [1, 1], [1, 1]),
        ),
        (
            BlockSparse.from_mask(8, lambda i, j: (i * j) % 7 < 3, 60),
            Sequence(60),
            multiplicity.block_sparse(60, 1, lambda i, j: (i * j) % 7 < 3),
        ),
        (
            BlockSparse.dilated_blocks(8, 1, 2),
            Sequence(60),
            multiplicity.block_sparse(60, 8, lambda i, j: abs(i - j) in (0, 2)),
        ),
    ],
)
def test_every_kind_of_part_is_counted(
    pattern: Pattern, tokens: Tokens, defined: torch.Tensor, pixels: int, causal: bool
) -> None:
    mask = multiplicity.causal_part(defined) if causal else defined
    pixel = np.arange(60) * pixels // 60
    expected = np.zeros((pixels, pixels), dtype=np.int64)
    np.add.at(expected, (pixel[:, None], pixel[None]), mask[0].numpy())
    counts = pictures.pairs_per_pixel(
        pattern, tokens, kv_heads=1, head=0, causal=causal, pixels=pixels
    )
    assert np.array_equal(counts, expected)


@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml")])
def test_the_suffix_decides_the_format(tmp_path: Path, suffix: str, start: bytes) -> None:
    pytest.importorskip("matplotlib")
    figure = pictures.pattern_picture(Dilated((8, 32), (1, 4)), Sequence(64), causal=True)
    path = tmp_path / f"picture{suffix}"
    pictures.save(figure, path)
    assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["picture.gif", "picture", "no/such/folder.png"])
def test_a_file_that_cannot_hold_a_picture_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^out: expected"):
        pictures.check_out(tmp_path / name)


@pytest.mark.parametrize("N", [0, 2**20 + 1])
def test_a_pattern_over_too_few_or_too_many_tokens_is_not_drawn(N: int) -> None:
    with pytest.raises(InvalidArgument, match=r"1 \.\. 1,048,576 tokens"):
        pictures.pattern_picture(Dense(), Sequence(N))


def test_an_ordering_of_too_many_points_is_refused_before_they_are_laid_out() -> None:
    with pytest.raises(InvalidArgument, match=r"1 \.\. 262,144 tokens to draw, got 10,000,000,000"):
        pictures.ordering_picture("row-major", Grid(100_000, 100_000))


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("kv_heads", {"kv_heads": 0}),
        ("head", {"kv_heads": 2, "head": 2}),
        ("head", {"head": -1}),
    ],
)
def test_a_head_that_is_not_there_is_refused(argument: str, options: dict[str, int]) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        pictures.pattern_picture(Dense(), Sequence(4), **options)
    assert refusal.value.argument == argument


def test_an_ordering_needs_coordinates() -> None:
    with pytest.raises(InvalidArgument, match="coordinates"):
        pictures.ordering_picture("hilbert", Sequence(4))
