"""The definitions of the patterns, each against examples by hand or another way to count."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import Phase, find, given, settings
from hypothesis import strategies as st
from ringspan.contracts import InvalidArgument
from ringspan.contracts.tokens import Grid, Sequence, Tokens
from ringspan.testing import multiplicity
from ringspan.testing.case import Case
from ringspan.testing.curve import Curve
from ringspan.testing.named import Named, Near, Periodic
from ringspan.testing.strategies import KINDS, Configuration, cases, configurations
from torch import Tensor

quick = settings(max_examples=40)


def rows(m: Tensor) -> list[str]:
    """Each query's keys, `#` where it sees one."""
    return ["".join(".#"[int(bool(x))] for x in row) for row in m[0].tolist()]


@quick
@given(configurations(max_N=24))
def test_multiplicities_count_branches_pair_by_pair(c: Configuration) -> None:
    m = c.multiplicity()
    for h in range(c.heads):
        h_kv = h // (c.heads // c.kv_heads)
        for i in range(c.N):
            for j in range(c.N):
                branches = 0
                for w, r in zip(c.segment_lengths, c.dilation_rates, strict=True):
                    o = (
                        h_kv % r
                        if c.head_offsets == "modulo"
                        else h_kv // math.ceil(c.kv_heads / r)
                    )
                    branches += i // w == j // w and (i % w) % r == (j % w) % r == o
                assert m[h, i, j] == (branches if j <= i or not c.causal else 0)


def test_places_move_segments_but_not_causality() -> None:
    backwards = torch.arange(5).flip(0)
    m = multiplicity.dilated(5, 1, 1, [2], [1], causal=True, places=backwards)
    # Places 0 | 1, 2 | 3, 4 hold tokens 4, 3 | 2, 1 | 0.
    pairs = {(i, j) for i, j in m[0].nonzero().tolist()}
    assert pairs == {(i, i) for i in range(5)} | {(4, 3), (2, 1)}


def test_each_branch_may_have_its_own_places() -> None:
    straight, swapped = torch.arange(4), torch.tensor([0, 2, 1, 3])
    both = multiplicity.dilated(4, 1, 1, [2, 4], [1, 2], places=[straight, swapped])
    first = multiplicity.dilated(4, 1, 1, [2], [1])
    second = multiplicity.dilated(4, 1, 1, [4], [2], places=swapped)
    assert torch.equal(both, first + second)


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("modulo", [0, 0, 1, 1, 0, 0]),
        ("query", [0, 1, 0, 1, 0, 1]),
        ("blocked", [0, 0, 0, 0, 1, 1]),
        ([1, 0, 0, 0, 0, 1], [1, 0, 0, 0, 0, 1]),
    ],
)
def test_head_offsets_follow_their_rule(rule: str | list[int], expected: list[int]) -> None:
    found = [multiplicity.head_offset(rule, h, heads=6, kv_heads=3, rate=2) for h in range(6)]
    assert found == expected


def test_an_unknown_rule_of_head_offsets_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="head_offsets: expected 'modulo'"):
        multiplicity.head_offset("random", 0, 1, 1, 1)


@pytest.mark.parametrize(
    "hazard",
    [
        lambda c: c.N % 128 == 64,
        lambda c: c.N == 1,
        lambda c: all(w > c.N for w in c.segment_lengths),
        lambda c: any(w % r for w, r in zip(c.segment_lengths, c.dilation_rates, strict=True)),
        lambda c: any(c.heads % r for r in c.dilation_rates),
        lambda c: any(c.heads < r for r in c.dilation_rates),
        lambda c: c.heads > c.kv_heads > 1,
        lambda c: c.head_dim != c.value_head_dim,
        lambda c: (c.multiplicity().sum(-1) == 0).any(),
    ],
)
def test_the_strategy_reaches_what_has_broken_others(
    hazard: Callable[[Configuration], bool],
) -> None:
    find(configurations(), hazard, settings=settings(max_examples=500, deadline=None))


def test_a_window_is_inclusive_and_none_is_unbounded() -> None:
    assert rows(multiplicity.dense(4, window=(1, 0))) == ["#...", "##..", ".##.", "..##"]
    assert rows(multiplicity.dense(4, window=(None, 1))) == ["##..", "###.", "####", "####"]
    assert rows(multiplicity.dense(4, window=(0, None), causal=True)) == [
        "#...", ".#..", "..#.", "...#",
    ]  # fmt: skip


def test_offsets_may_be_given_for_each_branch_and_may_leave_a_head_out() -> None:
    found = multiplicity.dilated(4, 2, 1, [4, 2], [2, 1], [(1, 0), (0, 1)])
    assert found[0].tolist() == [[1, 1, 0, 0], [1, 2, 0, 1], [0, 0, 1, 1], [0, 1, 1, 2]]
    assert found[1].tolist() == [[1, 0, 1, 0], [0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]
    same = multiplicity.dilated(4, 2, 1, [4, 2], [2, 1], (1, 0))
    assert torch.equal(same, multiplicity.dilated(4, 2, 1, [4, 2], [2, 1], [(1, 0), (1, 0)]))


def torchscale_slots(N: int, heads: int, w: int, r: int) -> list[list[list[int]]]:
    """Per segment and head, the tokens in its slots, -1 for padding: torchscale's reshapes."""
    w = min(w, N)
    tokens = torch.arange(N)[:, None].expand(N, heads)
    tokens = torch.nn.functional.pad(tokens, (0, 0, 0, -N % w), value=-1).reshape(-1, w, heads)
    tokens = torch.nn.functional.pad(tokens, (0, -heads % r, 0, -w % r), value=-1)
    slots = tokens.reshape(len(tokens), -1, r, r, tokens.shape[-1] // r)
    slots = slots.diagonal(dim1=2, dim2=3)  # segment, slot, head of a block, block
    slots = slots.permute(0, 3, 2, 1).flatten(1, 2)[:, :heads]
    found: list[list[list[int]]] = slots.tolist()
    return found


@quick
@given(st.integers(1, 20), st.integers(1, 6), st.integers(1, 24), st.integers(1, 6))
def test_the_torchscale_variant_has_torchscales_tokens_and_padding(
    N: int, heads: int, w: int, r: int
) -> None:
    m = torch.zeros(heads, N, N, dtype=torch.int64)
    null_keys = torch.zeros(heads, N, dtype=torch.int64)
    for segment in torchscale_slots(N, heads, w, r):
        for h, slots in enumerate(segment):
            for i in slots:
                for j in slots if i >= 0 else ():
                    if j >= 0:
                        m[h, i, j] += 1
                    else:
                        null_keys[h, i] += 1
    assert torch.equal(m, multiplicity.torchscale(N, heads, heads, [w], [r]))
    assert torch.equal(null_keys, multiplicity.torchscale_null_keys(N, heads, heads, [w], [r]))


def test_head_groups_share_the_heads_and_not_the_branches() -> None:
    # Five key/value heads in two groups of 3 and 2; the second group keeps every second token.
    m = multiplicity.head_groups(4, 10, 5, [2, 4], [1, 2])
    local = multiplicity.dilated(4, 1, 1, [2], [1])[0]
    even, odd = (multiplicity.dilated(4, 1, 1, [4], [2], [o])[0] for o in (0, 1))
    expected = [local] * 6 + [even] * 2 + [odd] * 2
    assert torch.equal(m, torch.stack(expected))


def test_consecutive_segments_repeat_and_cover_every_token() -> None:
    assert rows(multiplicity.consecutive(8, [2, 4], [1, 2])) == [
        "##......", "##......",
        "..#.#...", "...#.#..", "..#.#...", "...#.#..",
        "......##", "......##",
    ]  # fmt: skip


LINE = torch.arange(7)[:, None]


@pytest.mark.parametrize(
    ("window", "dilation", "stride", "edges", "expected"),
    [
        (3, 1, 1, "clip", "##..... ###.... .###... ..###.. ...###. ....### .....##"),
        (3, 1, 1, "shift", "###.... ###.... .###... ..###.. ...###. ....### ....###"),
        (4, 1, 1, "clip", "##..... ###.... ####... .####.. ..####. ...#### ....###"),
        (3, 2, 1, "shift", "#.#.#.. .#.#.#. #.#.#.. .#.#.#. ..#.#.# .#.#.#. ..#.#.#"),
        (3, 1, 2, "shift", "###.... ###.... ..###.. ..###.. ....### ....### ....###"),
        (3, 1, 3, "clip", "###.... ###.... ###.... ...###. ...###. ...###. .....##"),
        (3, 1, 1, "causal", "#...... ##..... ###.... .###... ..###.. ...###. ....###"),
        (3, 1, 2, "causal", "#...... ##..... .##.... .###... ...##.. ...###. ....###"),
    ],
)
def test_a_neighbourhood_on_a_line(
    window: int, dilation: int, stride: int, edges: str, expected: str
) -> None:
    causal_axes = [0] if edges == "causal" else []
    m = multiplicity.neighborhood(LINE, [window], [dilation], [stride], edges, causal_axes)
    assert rows(m) == expected.split()


def test_a_neighbourhood_on_a_grid_is_the_product_of_its_axes() -> None:
    points = torch.tensor(Grid(3, 7).coordinates)
    m = multiplicity.neighborhood(points, [2, 3], [1, 2], [1, 1], "shift", [0])
    rows_seen = multiplicity.neighborhood(LINE[:3], [2], [1], [1], "shift", [0])[0]
    columns_seen = multiplicity.neighborhood(LINE, [3], [2], [1], "shift")[0]
    assert torch.equal(m[0], torch.kron(rows_seen, columns_seen))


def test_a_neighbourhood_counts_coordinates_from_the_smallest_and_minds_gaps() -> None:
    points = torch.tensor([[9], [3], [4], [6], [4]])
    assert rows(multiplicity.neighborhood(points, [3], [1], [1])) == [
        "#....", ".##.#", ".##.#", "...#.", ".##.#",
    ]  # fmt: skip


def test_blocks_see_whole_blocks() -> None:
    m = multiplicity.block_sparse(5, 2, Periodic(("10", "11")))
    assert rows(m) == ["##..#", "##..#", "#####", "#####", "##..#"]


@pytest.mark.parametrize(
    ("kind", "fields", "expected"),
    [
        ("local", {"left": 1, "right": 0}, "#... ##.. .##. ..##"),
        (
            "local_global",
            {"left": 0, "right": 0, "global_blocks": 1},
            "#### ##.. #.#. #..#",
        ),
        ("dilated_blocks", {"reach": 1, "dilation": 2}, "#.#. .#.# #.#. .#.#"),
        ("from_blocks", {"predicate": Periodic(("01",)), "N": 4}, ".#.# .#.# .#.# .#.#"),
        ("from_mask", {"predicate": Periodic(("01",)), "tokens": 4}, ".#.# .#.# .#.# .#.#"),
    ],
)
def test_builders_of_blocks(kind: str, fields: dict[str, object], expected: str) -> None:
    pattern = Named(f"BlockSparse.{kind}", {"block_size": 1, **fields})
    assert rows(pattern.multiplicity(Sequence(4), 1, 1)) == expected.split()


def test_a_mask_of_elements_may_speak_of_coordinates() -> None:
    grid = Grid(2, 3)
    pattern = Named(
        "BlockSparse.from_mask", {"block_size": 4, "predicate": Near(1), "tokens": grid}
    )
    assert rows(pattern.multiplicity(grid, 1, 1)) == ["##.##.", "######", ".##.##"] * 2


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="kind: expected a pattern"):
        Named("Sparse").multiplicity(Sequence(4), 1, 1)


def test_documents_padding_and_queries_choose_rows_and_columns() -> None:
    case = Case(N=5, pattern=Named("Dense", {"window": (1, 0)}), documents=(2, 0, 3))
    assert rows(case.multiplicity()) == ["#....", "##...", "..#..", "..##.", "...##"]
    chunk = Case(N=5, pattern=Named("Dense"), causal=True, positions=(3, 0, 7))
    assert rows(chunk.multiplicity()) == ["####.", "#....", "#####"]
    padded = Case(N=5, pattern=Named("Dense"), padding="right", batch=2, seed=2)
    real = padded.key_padding()
    assert real is not None
    assert torch.equal(padded.multiplicity()[:, 0, 0].bool(), real)


def test_a_pattern_along_an_ordering_is_taken_in_places() -> None:
    case = Case(N=4, grid=(2, 2), pattern=Named("Dense", {"window": (1, 0), "along": "reversed"}))
    m = case.multiplicity(lambda name, tokens: torch.arange(tokens.N).flip(0).numpy())
    assert rows(m) == ["##..", ".##.", "..##", "...#"]


def by_first_axis(name: str, tokens: Tokens) -> np.ndarray:
    """An ordering: from the largest coordinate of the first axis to the smallest."""
    first = np.arange(tokens.N) if tokens.coordinates is None else tokens.coordinates[:, 0]
    return np.argsort(-first, kind="stable")


def test_a_curve_begins_anew_and_sees_turned_axes_as_it_is_told() -> None:
    def places(curve: Curve, tokens: Tokens, lengths: list[int] | None = None) -> list[int]:
        return curve.places(tokens, by_first_axis, lengths).tolist()

    assert places(Curve("falling"), Grid(2, 3)) == [3, 4, 5, 0, 1, 2]
    assert places(Curve("falling", axes=(1, 0)), Grid(2, 3)) == [4, 2, 0, 5, 3, 1]
    assert places(Curve("falling", chunk=4), Sequence(6)) == [3, 2, 1, 0, 5, 4]
    assert places(Curve("falling", chunk="segment"), Sequence(6), [1, 3, 4]) == [0, 3, 2, 1, 5, 4]
    assert places(Curve("falling", chunk="segment"), Sequence(3)) == [2, 1, 0]
    # Of five tokens in rows of three, the second row comes first.
    assert places(Curve("falling", fold=True), Sequence(6), [5, 5]) == [2, 3, 4, 0, 1, 5]
    assert places(Curve("falling", fold=True, chunk=4), Sequence(5), [5]) == [2, 3, 0, 1, 4]


def curve_of(case: Case) -> Curve:
    return case.pattern.along or Curve("")


HAZARDS: dict[str, Callable[[Case], bool]] = {
    **{kind: lambda c, kind=kind: c.pattern.kind == kind for kind in KINDS},
    "one token": lambda c: c.N == 1,
    "64 tokens over": lambda c: c.N % 128 == 64,
    "grouped heads": lambda c: c.heads > c.kv_heads > 1,
    "other values": lambda c: c.head_dim != c.value_head_dim,
    "huge scores": lambda c: c.largest_score == 1e4,
    "strides": lambda c: c.strides == "every other",
    "no keys": lambda c: c.padding == "all",
    "dropout": lambda c: c.dropout_p > 0,
    "empty documents": lambda c: c.documents is not None and 0 in c.documents,
    "curves through documents": lambda c: curve_of(c).ordering == "hilbert" and c.documents,
    "turned curves": lambda c: c.grid and curve_of(c).axes == (1, 0),
    "curves in chunks": lambda c: c.grid and curve_of(c).chunk in range(2, c.N),
    "curves in segments": lambda c: c.grid and c.documents and curve_of(c).chunk == "segment",
    "folded curves in chunks": lambda c: curve_of(c).fold and curve_of(c).chunk in range(2, c.N),
    "padded chunks": lambda c: c.positions is not None and c.padding == "scattered",
    "stored otherwise, with a sink": lambda c: c.stored == "morton" and c.sink is not None,
    "neighbours at points": lambda c: c.gaps and c.pattern.kind == "Neighborhood",
}  # fmt: skip


HAZARDS_OF_DENSE: dict[str, Callable[[Case], bool]] = {
    "cross-attention": lambda c: c.cross is not None and c.cross != c.N,
    "positions beyond": lambda c: max(c.positions or (0,)) > c.N,
    "a bare window": lambda c: c.pattern.fields == {"window": (0, 0)},
}


@pytest.mark.parametrize(
    ("kinds", "hazards"), [(KINDS, HAZARDS), (("Dense",), HAZARDS_OF_DENSE)], ids=["any", "dense"]
)
def test_the_strategy_of_cases_reaches_every_pattern_and_mode(
    kinds: tuple[str, ...], hazards: dict[str, Callable[[Case], bool]]
) -> None:
    missing = dict(hazards)

    @settings(max_examples=1500, derandomize=True, database=None, phases=[Phase.generate])
    @given(cases(kinds=kinds))
    def reach(case: Case) -> None:
        for name, is_there in list(missing.items()):
            if is_there(case):
                del missing[name]

    reach()
    assert not missing
