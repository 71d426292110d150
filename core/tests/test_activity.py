"""Which blocks see which: every pair of every kind of pattern, under any numbering."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from ringspan import BlockSparse, Coordinates, Dense, Dilated, Documents, Grid, Neighborhood
from ringspan.contracts import Pattern, Sequence, Tokens
from ringspan.errors import InvalidArgument
from ringspan.plan import activity
from ringspan.plan.activity import Seen
from ringspan.testing import multiplicity

SCATTERED = Coordinates([[i * 7 % 40, i * 3 % 40] for i in range(60)])


def neighborhood(
    tokens: Tokens, window: int, dilation: int = 1, stride: int = 1, edges: str = "clip"
) -> torch.Tensor:
    points = np.arange(tokens.N)[:, None] if tokens.coordinates is None else tokens.coordinates
    return multiplicity.neighborhood(torch.tensor(points), window, dilation, stride, edges)


def band(i: np.ndarray, j: np.ndarray) -> np.ndarray:
    return (i * j) % 7 < 3


def near(query: np.ndarray, key: np.ndarray) -> np.ndarray:
    return ((query - key) ** 2).sum(0) <= 9


CASES: dict[str, tuple[Pattern, Tokens, list[int] | None, torch.Tensor]] = {
    "everything": (Dense(), Sequence(70), None, multiplicity.dense(70)),
    "a band": (Dense(window=(9, 3)), Sequence(70), None, multiplicity.dense(70, window=(9, 3))),
    "a band of documents": (
        Dense(window=(9, 3)),
        Sequence(70),
        [30, 0, 7, 33],
        multiplicity.packed([multiplicity.dense(n, window=(9, 3)) for n in (30, 0, 7, 33)]),
    ),
    "branches": (
        Dilated((8, 32, 70), (1, 3, 5)),
        Sequence(70),
        None,
        multiplicity.dilated(70, 2, 2, (8, 32, 70), (1, 3, 5)),
    ),
    "branches in documents": (
        Dilated((8, 32), (1, 3)),
        Sequence(70),
        [9, 61],
        multiplicity.packed([multiplicity.dilated(n, 2, 2, (8, 32), (1, 3)) for n in (9, 61)]),
    ),
    "a window on a line": (
        Neighborhood(5, 3),
        Sequence(70),
        None,
        neighborhood(Sequence(70), 5, 3),
    ),
    "a window on a line with a stride": (
        Neighborhood(9, stride=4),
        Sequence(70),
        None,
        neighborhood(Sequence(70), 9, stride=4),
    ),
    "a window on a grid": (Neighborhood(5), Grid(9, 20), None, neighborhood(Grid(9, 20), 5)),
    "a window in space": (Neighborhood(3), Grid(4, 5, 6), None, neighborhood(Grid(4, 5, 6), 3)),
    "a wide window, dilated": (
        Neighborhood(4, 2),
        Grid(9, 20),
        None,
        neighborhood(Grid(9, 20), 4, 2),
    ),
    "a window with a stride": (
        Neighborhood(5, stride=4),
        Grid(12, 12),
        None,
        neighborhood(Grid(12, 12), 5, stride=4),
    ),
    "a window moved inside": (
        Neighborhood(7, edges="shift"),
        Grid(9, 14),
        None,
        neighborhood(Grid(9, 14), 7, edges="shift"),
    ),
    "a window among points": (Neighborhood(9), SCATTERED, None, neighborhood(SCATTERED, 9)),
    "a window among points of documents": (
        Neighborhood(9),
        SCATTERED,
        [23, 37],
        multiplicity.packed(
            [
                neighborhood(Coordinates(SCATTERED.coordinates[:23]), 9),
                neighborhood(Coordinates(SCATTERED.coordinates[23:]), 9),
            ]
        ),
    ),
    "blocks by rule": (
        BlockSparse.local(8, 2, 1),
        Sequence(70),
        None,
        multiplicity.block_sparse(70, 8, lambda i, j: -2 <= j - i <= 1),
    ),
    "blocks by predicate": (
        BlockSparse.from_blocks(8, band, 70),
        Sequence(70),
        None,
        multiplicity.block_sparse(70, 8, band),
    ),
    "a mask of positions in large blocks": (
        BlockSparse.from_mask(100, band, 130),
        Sequence(130),
        None,
        multiplicity.block_sparse(130, 1, band),
    ),
    "a mask of points": (
        BlockSparse.from_mask(16, near, Grid(9, 14)),
        Grid(9, 14),
        None,
        multiplicity.block_sparse(
            126, 1, lambda i, j: bool(near(Grid(9, 14).coordinates[i], Grid(9, 14).coordinates[j]))
        ),
    ),
    "nothing": (Dense(), Sequence(0), None, multiplicity.dense(0)),
}


def seen_in(name: str, *, causal: bool) -> tuple[Seen, np.ndarray]:
    """What a case's pattern lets two heads see, and the same as a literal table."""
    pattern, tokens, documents, m = CASES[name]
    packed = None if documents is None else Documents.from_lengths(documents)
    m = multiplicity.causal_part(m) if causal else m
    seen = Seen.of(pattern, tokens, heads=2, causal=causal, documents=packed)
    return seen, m.expand(2, -1, -1).numpy()


def between_blocks(m: np.ndarray, numbers: np.ndarray, count: int) -> np.ndarray:
    table = np.zeros((count, count), np.int64)
    np.add.at(table, (numbers[:, None], numbers[None]), m)
    return table


def numberings(N: int) -> dict[str, tuple[np.ndarray, int]]:
    """Stretches; stretches of a random order; blocks of any size, some empty; one; one each."""
    dice = np.random.default_rng(N)
    stretches = np.arange(N) // 8
    count = N // 8 + 1
    return {
        "stretches": (stretches, count),
        "shuffled": (dice.permutation(stretches), count),
        "any": (dice.integers(0, 5, N), 7),
        "one": (np.zeros(N, np.int64), 1),
        "each": (dice.permutation(N), max(N, 1)),
    }


@pytest.mark.parametrize("numbering", ["stretches", "shuffled", "any", "one", "each"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_pairs_between_blocks_are_those_of_the_definition(
    name: str, causal: bool, numbering: str
) -> None:
    if causal and name == "a window moved inside":
        with pytest.raises(InvalidArgument, match="causal"):
            seen_in(name, causal=True)
        return
    seen, m = seen_in(name, causal=causal)
    numbers, count = numberings(seen.N)[numbering]
    tables = [between_blocks(m[head], numbers, count) for head in range(2)]
    for head in range(2):
        assert np.array_equal(seen.pairs(numbers, count, head), tables[head])
    assert np.array_equal(seen.activity(numbers, count), tables[0] + tables[1] > 0)
    assert seen.active(numbers, count) == np.count_nonzero(tables[0] + tables[1])
    assert seen.area == m[0].sum()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", [name for name in CASES if name != "a window moved inside"])
def test_the_row_of_a_query_is_that_of_the_definition(name: str, causal: bool) -> None:
    seen, m = seen_in(name, causal=causal)
    for position in range(0, seen.N, 11):
        for head in range(2):
            assert np.array_equal(seen.row(position, head), m[head, position])


def test_the_cases_meet_every_kind_of_mask() -> None:
    met = {
        tiles.batch.mask.name
        for name in CASES
        for causal in (False, True)
        if not (causal and name == "a window moved inside")
        for _, tiles in seen_in(name, causal=causal)[0].batches
    }
    assert met == {"FULL", "CAUSAL", "BAND", "INTERVAL", "BITMAP"}


@given(
    numbers=st.lists(st.integers(0, 5), min_size=40, max_size=40),
    window=st.tuples(st.integers(0, 50), st.integers(0, 50)),
    at_once=st.sampled_from([1, 7, 2**20]),
)
@example(numbers=[5, 0] * 20, window=(50, 50), at_once=1)
def test_long_runs_of_keys_are_swept_and_short_ones_gone_through_with_one_result(
    numbers: list[int], window: tuple[int, int], at_once: int
) -> None:
    blocks = np.array(numbers)
    expected = between_blocks(multiplicity.dense(40, window=window)[0].numpy(), blocks, 6) > 0
    seen = Seen.of(Dense(window=window), Sequence(40))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activity, "_PAIRS_AT_ONCE", at_once)
        assert np.array_equal(seen.activity(blocks, 6), expected)
        # With more blocks than there are keys in any run, nothing is swept.
        padded = seen.activity(blocks, 60)
    assert np.array_equal(padded[:6, :6], expected)
    assert padded.sum() == expected.sum()


def test_a_pair_of_blocks_that_several_heads_see_counts_once() -> None:
    pattern, halves = Dilated((8,), (2,)), np.arange(8) // 4
    assert Seen.of(pattern, Sequence(8), heads=2).active(halves, 2) == 4
    odd = np.arange(8) % 2
    assert Seen.of(pattern, Sequence(8), heads=1).active(odd, 2) == 1
    assert Seen.of(pattern, Sequence(8), heads=2).active(odd, 2) == 2


def test_more_blocks_than_a_table_can_hold_are_refused() -> None:
    seen = Seen.of(Dense(window=(1, 0)), Sequence(2**16))
    numbers = np.arange(2**16)
    with pytest.raises(InvalidArgument, match="Take a larger block_size") as refusal:
        seen.active(numbers // 2 + numbers % 2, 2**15 + 1)
    assert refusal.value.argument == "block_size"
    with pytest.raises(InvalidArgument, match="at most 11,585 blocks"):
        seen.pairs(numbers // 4, 2**14)
    assert seen.active(numbers // 64, 2**10) == 2 * 2**10 - 1


@pytest.mark.parametrize("numbers", [[0, 1, 2], [0, 1, 2, 3, 3], [0, -1, 2, 2]])
def test_a_numbering_that_is_none_of_the_tokens_is_refused(numbers: list[int]) -> None:
    with pytest.raises(InvalidArgument, match=r"0 \.\. 2 for each of 4 positions"):
        Seen.of(Dense(), Sequence(4)).active(np.array(numbers), 3)


def test_documents_of_other_tokens_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="documents that end at N = 4"):
        Seen.of(Dense(), Sequence(4), documents=Documents.from_lengths([3]))
