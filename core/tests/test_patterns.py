"""What patterns lay out is what they are defined as, for any documents, heads and curves."""

from __future__ import annotations

import ast
import itertools
import pickle
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import ringspan as rs
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.contracts import (
    Cliques,
    Coordinates,
    Documents,
    Domain,
    Grid,
    Pattern,
    Runs,
    Sequence,
    Tokens,
    Windows,
)
from ringspan.errors import InvalidArgument
from ringspan.patterns import Along, Consecutive, Dense, Dilated, HeadGroups
from ringspan.testing import multiplicity


def shuffled(name: str, tokens: Tokens) -> np.ndarray:
    """Stands for any ordering: the token at each place."""
    return np.random.RandomState(tokens.N).permutation(tokens.N)


def places_of(N: int) -> torch.Tensor:
    return torch.from_numpy(np.argsort(shuffled("", Sequence(N))))


def folded_places(N: int, length: int) -> torch.Tensor:
    """Where tokens stand when each segment is shuffled on its own."""
    segments = torch.arange(N).split(length)
    return torch.cat([segment[0] + places_of(len(segment)) for segment in segments])


def laid_over(
    lengths: list[int] | None, heads: int = 1, kv_heads: int = 1, N: int = 0, causal: bool = False
) -> Domain:
    documents = None if lengths is None else Documents.from_lengths(lengths)
    tokens = Sequence(N if documents is None else documents.N)
    return Domain(tokens, heads, kv_heads, shuffled, documents, causal)


def expanded(pattern: Pattern, domain: Domain) -> torch.Tensor:
    """`m_h(i, j)` from the parts, which must keep the contract."""
    pattern.check(domain)
    m = np.zeros((domain.heads, domain.N, domain.N), np.int64)
    for part in pattern.parts(domain):
        assert isinstance(part, Cliques | Windows)
        assert len(set(part.heads)) == len(part.heads) > 0
        sets = part.sets.listed()
        assert len(np.unique(sets.rows)) == len(sets.rows)
        assert (np.diff(sets.bounds) > 0).all()
        for start, end in itertools.pairwise(sets.bounds):
            rows = sets.rows[start:end]
            low, high = np.zeros_like(rows), np.full_like(rows, len(rows))
            if isinstance(part, Windows):
                low, high = part.low[start:end], part.high[start:end]
                assert (np.diff(low) >= 0).all()
                assert (np.diff(high) >= 0).all()
            else:
                assert (np.diff(rows) > 0).all()
            seen = (low[:, None] <= np.arange(len(rows))) & (np.arange(len(rows)) < high[:, None])
            m[np.ix_(part.heads, rows, rows)] += seen
    return torch.from_numpy(m)


def packed(lengths: list[int], heads: int, alone: Callable[[int], torch.Tensor]) -> torch.Tensor:
    """The definition for every document, side by side."""
    blocks = [alone(N).expand(heads, N, N) for N in lengths]
    return torch.stack([torch.block_diag(*(block[h] for block in blocks)) for h in range(heads)])


@dataclass(frozen=True)
class Case:
    """Documents, heads and branches that fit each other."""

    lengths: list[int]
    heads: int
    kv_heads: int
    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]


@st.composite
def cases(draw: st.DrawFn, *, branches: int | None = None, kv_heads: int = 5) -> Case:
    lengths = draw(st.lists(st.integers(0, 24), min_size=1, max_size=4))
    kv_heads = draw(st.integers(branches or 1, kv_heads))
    count = branches or draw(st.integers(1, 3))
    segment_lengths = tuple(draw(st.integers(1, 30)) for _ in range(count))
    rates = tuple(draw(st.integers(1, w)) for w in segment_lengths)
    group = draw(st.integers(1, 3))
    return Case(lengths, kv_heads * group, kv_heads, segment_lengths, rates)


def domain_of(case: Case) -> Domain:
    return laid_over(case.lengths, case.heads, case.kv_heads)


alongs = st.sampled_from([None, Along("shuffled"), Along("shuffled", fold=True)])


def all_places(along: Along | None, N: int, segment_lengths: tuple[int, ...]) -> object:
    """The places of a document's tokens, for each branch."""
    if along is None or N == 0:
        return None
    if along.fold:
        return [folded_places(N, length) for length in segment_lengths]
    return places_of(N)


@given(
    st.lists(st.integers(0, 20), min_size=1, max_size=4),
    st.tuples(*[st.none() | st.integers(0, 25)] * 2),
    st.booleans(),
)
def test_a_dense_window_sees_as_far_left_and_right_as_it_says(
    lengths: list[int], window: tuple[int | None, int | None], curve: bool
) -> None:
    pattern = Dense(window, along="shuffled" if curve else None)

    def alone(N: int) -> torch.Tensor:
        m = multiplicity.dense(N, window=window)
        return multiplicity.in_places(m, places_of(N)) if curve else m

    assert torch.equal(expanded(pattern, laid_over(lengths, 2)), packed(lengths, 2, alone))


def test_a_folded_dense_window_folds_every_document_whole() -> None:
    pattern = Dense((2, 1), along=Along("shuffled", fold=True))
    m = expanded(pattern, laid_over([7, 5]))
    expected = packed(
        [7, 5],
        1,
        lambda N: multiplicity.in_places(multiplicity.dense(N, window=(2, 1)), places_of(N)),
    )
    assert torch.equal(m, expected)


@pytest.mark.parametrize("window", [None, (None, None), (6, 99), (6, None)])
def test_dense_without_a_bound_that_counts_is_one_clique_per_document(window: object) -> None:
    (part,) = Dense(window).parts(laid_over([7, 0, 5], 3))  # type: ignore[arg-type]
    assert isinstance(part, Cliques)
    assert isinstance(part.sets, Runs)
    assert part.heads == (0, 1, 2)
    assert part.sets.start.tolist() == [0, 7]
    assert part.sets.length.tolist() == [7, 5]


@given(st.data(), cases(), alongs)
def test_dilated_parts_are_the_definition_for_any_head_offsets(
    data: st.DataObject, case: Case, along: Along | None
) -> None:
    offsets = st.lists(st.integers(0, 31), min_size=case.heads, max_size=case.heads)
    rule = data.draw(
        st.sampled_from(["modulo", "query", "blocked"])
        | offsets
        | st.lists(offsets, min_size=len(case.dilation_rates), max_size=len(case.dilation_rates))
    )
    pattern = Dilated(case.segment_lengths, case.dilation_rates, rule, along)  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        m = expanded(pattern, domain_of(case))
    assert torch.equal(
        m,
        packed(
            case.lengths,
            case.heads,
            lambda N: multiplicity.dilated(
                N,
                case.heads,
                case.kv_heads,
                case.segment_lengths,
                case.dilation_rates,
                rule,
                places=all_places(along, N, case.segment_lengths),  # type: ignore[arg-type]
            ),
        ),
    )


def test_heads_of_one_offset_share_a_part() -> None:
    parts = list(Dilated((8, 16), (1, 3)).parts(laid_over(None, 8, 4, N=40)))
    assert [part.heads for part in parts] == [tuple(range(8)), (0, 1, 6, 7), (2, 3), (4, 5)]


def test_offsets_of_no_head_and_offsets_that_no_segment_has_yield_no_part() -> None:
    assert not list(Dilated((4,), (4,), head_offsets=(4, 9)).parts(laid_over(None, 2, N=12)))
    assert not list(Dilated((4,), (4,), head_offsets=(3, 3)).parts(laid_over([2, 3], 2)))


@given(st.integers(1, 3).flatmap(lambda count: cases(branches=count, kv_heads=7)), alongs)
def test_head_groups_are_the_definition(case: Case, along: Along | None) -> None:
    pattern = HeadGroups(case.segment_lengths, case.dilation_rates, along)
    groups = len(case.segment_lengths)

    def alone(N: int) -> torch.Tensor:
        args = (N, case.heads, case.kv_heads, case.segment_lengths, case.dilation_rates)
        m = multiplicity.head_groups(*args)
        for head in range(case.heads) if along else ():
            group, size = 0, case.kv_heads // groups
            while head // (case.heads // case.kv_heads) >= (group + 1) * size + min(
                group + 1, case.kv_heads % groups
            ):
                group += 1
            places = (
                folded_places(N, case.segment_lengths[group])
                if along and along.fold and N
                else places_of(N)
            )
            m[head] = multiplicity.in_places(m[head, None], places)
        return m

    assert torch.equal(expanded(pattern, domain_of(case)), packed(case.lengths, case.heads, alone))


@given(cases(), alongs)
def test_consecutive_segments_are_the_definition(case: Case, along: Along | None) -> None:
    pattern = Consecutive(case.segment_lengths, case.dilation_rates, along)

    def places(N: int) -> torch.Tensor:
        if along is None or not along.fold or not N:
            return torch.arange(N) if along is None else places_of(N)
        cuts = itertools.accumulate(itertools.cycle(case.segment_lengths), initial=0)
        starts = [*itertools.takewhile(lambda cut: cut < N, cuts), N]
        return torch.cat([a + places_of(b - a) for a, b in itertools.pairwise(starts)])

    def alone(N: int) -> torch.Tensor:
        m = multiplicity.consecutive(N, case.segment_lengths, case.dilation_rates)
        return multiplicity.in_places(m, places(N))

    assert torch.equal(expanded(pattern, domain_of(case)), packed(case.lengths, case.heads, alone))


def test_consecutive_segments_leave_no_token_alone_of_itself() -> None:
    m = expanded(Consecutive((5, 9), (2, 4)), laid_over([31, 8], 2))
    assert m.diagonal(dim1=1, dim2=2).min() == 1


def test_a_curve_restarts_in_every_document_of_a_grid() -> None:
    documents = Documents.from_lengths([5, 7])
    asked: list[Tokens] = []

    def order(name: str, tokens: Tokens) -> np.ndarray:
        asked.append(tokens)
        return np.arange(tokens.N)[::-1]

    grid = Grid(3, 4)
    tokens = Along("reversed").tokens_by_place(Domain(grid, 1, 1, order, documents), 4)
    assert asked == [Coordinates(grid.coordinates[:5]), Coordinates(grid.coordinates[5:])]
    assert tokens.tolist() == [4, 3, 2, 1, 0, 11, 10, 9, 8, 7, 6, 5]


PACKED = Documents.from_lengths([1000] * 1000)


@pytest.mark.parametrize(
    "pattern",
    [
        Dense(),
        Dilated((2048, 4096, 8192, 16384, 32768), (1, 2, 4, 8, 16)),
        Dilated((2048, 4096, 8192, 16384, 32768), (1, 2, 4, 8, 16), head_offsets="query"),
        HeadGroups((2048, 4096, 8192), (1, 2, 4)),
        Consecutive((512, 64), (8, 1)),
    ],
    ids=repr,
)
def test_a_million_packed_tokens_are_laid_out_by_segment_and_not_by_token(pattern: Pattern) -> None:
    domain = Domain(Sequence(PACKED.N), 16, 8, shuffled, PACKED)
    parts = list(pattern.parts(domain))
    assert len(parts) <= 2 * 31
    assert all(isinstance(part.sets, Runs) for part in parts)
    assert max(len(part.sets.start) for part in parts) <= 16 * len(PACKED)


@pytest.mark.parametrize(
    "pattern",
    [
        Dense(),
        Dense((3, None), along="hilbert"),
        Dilated([4, 8], [1, 2]),  # type: ignore[arg-type]
        Dilated((4, 8), (1, 2), [0, 1, 1], Along("hilbert", fold=True)),  # type: ignore[arg-type]
        Dilated((4, 8), (1, 2), ((0, 1), (1, 0))),
        HeadGroups((4, 8), (1, 2), "hilbert"),
        Consecutive((4, 8), (1, 2), "morton"),
        Dilated.torchscale((4, 8), (1, 16)),
        Dilated.geometric(9000),
    ],
    ids=repr,
)
def test_a_pattern_comes_back_from_its_text_and_from_a_pickle(pattern: Pattern) -> None:
    assert Pattern.from_literal(ast.literal_eval(pattern.text)) == pattern
    assert pickle.loads(pickle.dumps(pattern)) == pattern
    assert hash(pattern) == hash(Pattern.from_literal(ast.literal_eval(pattern.text)))


FAR = 2**53


@pytest.mark.parametrize(
    ("far", "near"),
    [
        (Dense((FAR, FAR)), Dense()),
        (Dense((0, FAR)), Dense((0, None))),
        (Dense((FAR, 3)), Dense((None, 3))),
        (Dilated((FAR,), (1,)), Dense()),
        (Dilated((FAR, FAR), (FAR, 2)), Dilated((19, 19), (19, 2))),
        (Dilated((FAR,), (FAR,), (FAR - 1, 0)), Dilated((19,), (19,), (19, 0))),
        (Dilated.torchscale((FAR,), (FAR,)), Dilated.torchscale((19,), (19,))),
        (HeadGroups((FAR,), (FAR,)), HeadGroups((19,), (19,))),
        (Consecutive((FAR,), (FAR,)), Consecutive((19,), (19,))),
        (Consecutive((3, FAR - 3), (1, FAR - 3)), Consecutive((3, 16), (1, 16))),
    ],
    ids=repr,
)
@pytest.mark.parametrize("lengths", [[19], [5, 0, 14]], ids=repr)
@pytest.mark.usefixtures("toy")
def test_what_reaches_beyond_any_sequence_is_as_good_as_the_whole_of_it(
    far: Pattern, near: Pattern, lengths: list[int]
) -> None:
    domain = laid_over(lengths, heads=2, kv_heads=2)
    assert torch.equal(*(expanded(pattern, domain) for pattern in (far, near)))
    q, k, v = torch.randn(3, 1, 19, 2, 4).unbind()
    documents = Documents.from_lengths(lengths)
    one, other = (
        rs.attention(q, k, v, pattern=pattern, documents=documents, causal=True)
        for pattern in (far, near)
    )
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Dense(window=3), "window"),
        (lambda: Dense(window=(1, 2, 3)), "window"),
        (lambda: Dense(window=(-1, 0)), "window[0]"),
        (lambda: Dense(window=(0, 1.5)), "window[1]"),
        (lambda: Dense(window=(True, 0)), "window[0]"),
        (lambda: Dense(along="hilbert"), "along"),
        (lambda: Dense(window=(1, 1), along=7), "along"),
        (lambda: Dilated((), ()), "segment_lengths"),
        (lambda: Dilated(8, 2), "segment_lengths"),
        (lambda: Dilated((8,), (2, 4)), "dilation_rates"),
        (lambda: Dilated((8,), (0,)), "dilation_rates[0]"),
        (lambda: Dilated((8,), (2,), head_offsets="zigzag"), "head_offsets"),
        (lambda: Dilated((8,), (2,), head_offsets=()), "head_offsets"),
        (lambda: Dilated((8,), (2,), head_offsets=1), "head_offsets"),
        (lambda: Dilated((8,), (2,), head_offsets=(0, -1)), "head_offsets[1]"),
        (lambda: Dilated((8,), (2,), head_offsets=((0, 1), (1, 0))), "head_offsets"),
        (lambda: Dilated((8, 8), (2, 1), head_offsets=((0, 1), 1)), "head_offsets[1]"),
        (lambda: Dilated((8,), (2,), along=3), "along"),
        (lambda: Consecutive((8, 0), (1, 1)), "segment_lengths[1]"),
        (lambda: Dilated.torchscale((8,), (1, 2)), "dilation_rates"),
        (lambda: Dilated.torchscale((8,), (2,)).adapted(4), "pattern"),
        (lambda: Dilated.geometric(0), "max_length"),
        (lambda: Dilated.geometric(9, base=1), "base"),
        (lambda: Dilated.geometric(9, growth=1), "growth"),
        (lambda: Dilated.geometric(9, flops=1e9), "heads"),
        (lambda: Dilated.geometric(9, flops=1e9, heads=2), "head_dim"),
        (lambda: Dilated.geometric(9, flops=0, heads=2, head_dim=4), "flops"),
        (lambda: Dilated.geometric(9, flops="1", heads=2, head_dim=4), "flops"),
        (lambda: Dilated.geometric(9000, flops=1, heads=2, head_dim=4), "flops"),
        (lambda: Dilated((8,), (2,)).adapted(0), "N"),
        (lambda: Dense(window=(2**70, 0)), "window[0]"),
        (lambda: Dense(window=(0, 2**63 - 1)), "window[1]"),
        (lambda: Dense(window=(0, 2**53 + 1)), "window[1]"),
        (lambda: Dilated((8, 2**70), (1, 1)), "segment_lengths[1]"),
        (lambda: Dilated((8, 2**70), (1, 2**70)), "segment_lengths[1]"),
        (lambda: Dilated((8,), (2,), head_offsets=(0, 2**70)), "head_offsets[1]"),
        (lambda: Dilated((8,), (2,)).adapted(2**70), "N"),
        (lambda: Dilated.torchscale((8,), (2**70,)), "dilation_rates[0]"),
        (lambda: Dilated.geometric(2**70), "max_length"),
        (lambda: Dilated.geometric(9, base=2**70), "base"),
        (lambda: Dilated.geometric(9, growth=2**70), "growth"),
        (lambda: HeadGroups((2**70,), (1,)), "segment_lengths[0]"),
        (lambda: Consecutive((2**70,), (1,)), "segment_lengths[0]"),
        (lambda: Consecutive((2**62, 2**62), (1, 1)), "segment_lengths[0]"),
        (lambda: Consecutive((2**53, 1), (1, 1)), "segment_lengths"),
    ],
)
def test_what_a_pattern_cannot_be_built_from_is_refused_by_name(
    build: Callable[[], Pattern], named: str
) -> None:
    with pytest.raises(InvalidArgument) as caught:
        build()
    assert str(caught.value).startswith(f"{named}:") or f"{named}" in str(caught.value)


def test_offsets_for_another_number_of_heads_are_refused() -> None:
    for offsets in ((0, 1), ((0, 1), (0, 1))):
        pattern = Dilated((8, 8), (2, 2), head_offsets=offsets)  # type: ignore[arg-type]
        with pytest.raises(InvalidArgument, match="one integer for each of the 4 query heads"):
            pattern.check(laid_over([9], 4, 2))


def test_more_groups_than_key_value_heads_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="at most 2 groups"):
        HeadGroups((8, 8, 8), (1, 1, 1)).check(laid_over([9], 8, 2))


def test_offsets_by_query_head_warn_where_they_cover_no_more() -> None:
    pattern = Dilated((8, 8), (1, 2), head_offsets="query")
    with pytest.warns(UserWarning, match="'modulo' covers as much") as caught:
        pattern.check(laid_over([9], 4, 2))
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pattern.check(laid_over([9], 4, 1))
        pattern.check(laid_over([9], 4, 4))


@pytest.mark.parametrize("N", [1, 2, 7, 2047, 2048, 2049, 30_000, 1_000_000])
def test_a_geometric_pattern_spans_its_length_and_grows_evenly(N: int) -> None:
    pattern = Dilated.geometric(N)
    assert pattern.segment_lengths[-1] == N
    for c, (w, r) in enumerate(zip(pattern.segment_lengths, pattern.dilation_rates, strict=True)):
        assert r == 2**c
        assert w == min(2048 * 2**c, N)


@given(
    st.integers(1, 10**6),
    st.integers(1, 10**6),
    st.integers(2, 5),
    st.integers(0, 3000),
)
def test_a_geometric_pattern_adapted_is_one_for_the_length_at_hand(
    N: int, more: int, growth: int, base: int
) -> None:
    longest = Dilated.geometric(N + more, growth + base, growth)
    assert longest.adapted(N) == Dilated.geometric(N, growth + base, growth)
    assert longest.adapted(N + more) == longest
    assert longest.adapted(N + 2 * more) == longest


@given(st.data(), cases())
def test_an_adapted_pattern_drops_only_branches_that_span_everything(
    data: st.DataObject, case: Case
) -> None:
    N = data.draw(st.integers(1, 24))
    branches = list(zip(case.segment_lengths, case.dilation_rates, strict=True))
    offsets = tuple((c,) * 1 for c in range(len(branches)))
    pattern = Dilated(case.segment_lengths, case.dilation_rates, offsets).adapted(N)
    spanning = [branch for branch in branches if branch[0] >= N]
    kept = [b for b in branches if b[0] < N or b is min(spanning, key=lambda s: s[0])]
    assert pattern.dilation_rates == tuple(r for _, r in kept)
    whole = Dilated(
        tuple(w for w, _ in kept),
        tuple(r for _, r in kept),
        tuple(offsets[branches.index(b)] for b in kept),
    )
    if len(set(branches)) == len(branches):
        domain = laid_over(None, N=N)
        assert torch.equal(expanded(pattern, domain), expanded(whole, domain))


@given(st.integers(1, 3000), st.integers(2, 3), st.integers(2, 400), st.floats(1e3, 1e9))
def test_a_budget_takes_the_largest_base_that_stays_within_it(
    N: int, growth: int, base: int, flops: float
) -> None:
    heads, head_dim = 3, 8
    base = max(base, growth)

    def cost(pattern: Dilated) -> int:
        parts = pattern.parts(laid_over(None, heads, heads, N=N))
        pairs = sum(len(part.heads) * int((part.sets.length**2).sum()) for part in parts)
        return 4 * head_dim * pairs

    bases = [base]
    while bases[-1] // growth >= growth:
        bases.append(bases[-1] // growth)
    fitting = [b for b in bases if cost(Dilated.geometric(N, b, growth)) <= flops]

    def build() -> Dilated:
        return Dilated.geometric(N, base, growth, flops, heads=heads, head_dim=head_dim)

    if fitting:
        assert build() == Dilated.geometric(N, fitting[0], growth)
    else:
        with pytest.raises(InvalidArgument, match="flops"):
            build()
