"""Neighbourhoods against the definition, pair by pair, and what they cost to lay out."""

from __future__ import annotations

import ast
import itertools
import pickle
import tracemalloc
from collections.abc import Sequence as Several
from typing import Any

import numpy as np
import pytest
import ringspan as rs
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ringspan.contracts import (
    Blocks,
    Coordinates,
    Documents,
    Domain,
    Grid,
    Pattern,
    Sequence,
    Tokens,
    Windows,
)
from ringspan.errors import InvalidArgument
from ringspan.patterns import Neighborhood
from ringspan.testing import assert_exact, multiplicity, yardstick
from torch.profiler import ProfilerActivity, profile

HEADS = 2


def laid_over(
    tokens: Tokens, documents: Several[int] | None = None, *, causal: bool = False
) -> Domain:
    packed = None if documents is None else Documents.from_lengths(documents)
    return Domain(tokens, HEADS, 1, lambda *_: np.arange(tokens.N), packed, causal)


def expanded(pattern: Pattern, domain: Domain) -> torch.Tensor:
    """`m(i, j)` of head 0, from the parts, which must keep the contract."""
    pattern.check(domain)
    m = np.zeros((domain.N, domain.N), np.int64)
    for part in pattern.parts(domain):
        assert part.heads == tuple(range(HEADS))
        rows, bounds = part.sets.listed().rows, part.sets.listed().bounds
        assert len(np.unique(rows)) == len(rows)
        for number, (start, end) in enumerate(itertools.pairwise(bounds)):
            if isinstance(part, Windows):
                for own, low, high in zip(
                    rows[start:end], part.low[start:end], part.high[start:end], strict=True
                ):
                    m[own, rows[start:end][low:high]] += 1
                assert (np.diff(part.low[start:end]) >= 0).all()
                assert (np.diff(part.high[start:end]) >= 0).all()
                assert (part.low >= 0).all()
            if isinstance(part, Blocks):
                assert end > start
                others = part.indices[part.indptr[number] : part.indptr[number + 1]]
                assert (np.diff(others) > 0).all()
                for other in others:
                    query, key = rows[start:end, None], rows[bounds[other] : bounds[other + 1]]
                    m[query, key] += 1 if part.seen is None else part.seen(query, key[None])
    return torch.from_numpy(m)[None]


def defined(pattern: Neighborhood, points: np.ndarray, lengths: Several[int]) -> torch.Tensor:
    """The definition, for each document alone."""
    axes = points.shape[1]
    window, dilation, stride = (
        value if isinstance(value, tuple) else (value,) * axes
        for value in (pattern.window, pattern.dilation, pattern.stride)
    )
    coordinates = torch.tensor(points)
    return multiplicity.packed(
        [
            multiplicity.neighborhood(
                alone, window, dilation, stride, pattern.edges, pattern.causal_axes
            )
            for alone in coordinates.split(list(lengths))
        ]
    )


@st.composite
def patterns(draw: st.DrawFn, extents: Several[int]) -> Neighborhood:
    """Any that fits: extents are the smallest of all documents."""
    edges = draw(st.sampled_from(("clip", "shift")))
    window, dilation, stride = [], [], []
    for extent in extents:
        fits = edges == "shift"
        window.append(draw(st.integers(1, extent if fits else min(extent, 9))))
        dilation.append(draw(st.integers(1, max(1, extent // window[-1]))))
        stride.append(draw(st.integers(1, window[-1])))
    causal_axes = draw(st.sets(st.integers(0, len(extents) - 1)))
    return Neighborhood(tuple(window), tuple(dilation), tuple(stride), edges, tuple(causal_axes))


@st.composite
def on_a_sequence(draw: st.DrawFn) -> tuple[Neighborhood, list[int]]:
    lengths = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    return draw(patterns([min([n for n in lengths if n] or [1])])), lengths


@st.composite
def on_a_grid(draw: st.DrawFn) -> tuple[Neighborhood, Grid]:
    shape = draw(
        st.one_of(
            st.tuples(st.integers(1, 16), st.integers(1, 16)),
            st.tuples(st.integers(1, 5), st.integers(1, 7), st.integers(1, 6)),
        )
    )
    return draw(patterns(shape)), Grid(*shape)


@st.composite
def on_points(draw: st.DrawFn) -> tuple[Neighborhood, list[int], np.ndarray]:
    """Points with gaps, in any order, some of them twice, in documents far from each other."""
    axes = draw(st.integers(2, 3))
    clouds = [
        draw(st.integers(0, 5000))
        + np.array(
            draw(
                st.lists(
                    st.tuples(*(st.integers(0, side) for side in (30, 9, 3)[:axes])), max_size=50
                )
            ),
            np.int64,
        ).reshape(-1, axes)
        for _ in range(draw(st.integers(1, 3)))
    ]
    extents = [np.ptp(cloud, axis=0) + 1 for cloud in clouds if len(cloud)]
    smallest = np.min(extents, axis=0) if extents else np.ones(axes, np.int64)
    pattern = draw(patterns(smallest.tolist()))
    return pattern, [len(cloud) for cloud in clouds], np.concatenate(clouds)


@settings(max_examples=200)
@given(on_a_sequence())
def test_on_packed_documents_each_is_as_the_definition_says_alone(
    problem: tuple[Neighborhood, list[int]],
) -> None:
    pattern, lengths = problem
    positions = np.concatenate([np.arange(n) for n in lengths])[:, None]
    m = expanded(pattern, laid_over(Sequence(sum(lengths)), lengths))
    assert torch.equal(m, defined(pattern, positions, lengths))


@settings(max_examples=200)
@given(on_a_grid())
def test_on_a_grid_every_pair_is_as_the_definition_says(
    problem: tuple[Neighborhood, Grid],
) -> None:
    pattern, grid = problem
    assert torch.equal(
        expanded(pattern, laid_over(grid)), defined(pattern, grid.coordinates, [grid.N])
    )


@settings(max_examples=200)
@given(on_points())
def test_points_with_gaps_in_documents_are_as_the_definition_says(
    problem: tuple[Neighborhood, list[int], np.ndarray],
) -> None:
    pattern, lengths, points = problem
    m = expanded(pattern, laid_over(Coordinates(points), lengths))
    assert torch.equal(m, defined(pattern, points, lengths))


@given(st.integers(1, 60), st.integers(1, 12), st.integers(1, 90))
def test_a_window_beyond_the_sequence_is_cut_off(N: int, dilation: int, window: int) -> None:
    pattern = Neighborhood(window, dilation)
    positions = np.arange(N)[:, None]
    assert torch.equal(expanded(pattern, laid_over(Sequence(N))), defined(pattern, positions, [N]))


def test_a_row_of_a_grid_cut_by_documents_starts_anew_at_each() -> None:
    grid, lengths, pattern = Grid(6, 5), [7, 0, 12, 11], Neighborhood(3)
    m = expanded(pattern, laid_over(grid, lengths))
    assert torch.equal(m, defined(pattern, grid.coordinates, lengths))


def test_windows_shift_inside_and_causal_windows_end_at_the_query() -> None:
    def keys(pattern: Neighborhood, query: int) -> list[int]:
        return expanded(pattern, laid_over(Sequence(10)))[0, query].nonzero().ravel().tolist()

    assert keys(Neighborhood(5, edges="shift"), 0) == [0, 1, 2, 3, 4]
    assert keys(Neighborhood(5, edges="shift"), 9) == [5, 6, 7, 8, 9]
    assert keys(Neighborhood(5), 0) == [0, 1, 2]
    assert keys(Neighborhood(4), 5) == [3, 4, 5, 6]
    assert keys(Neighborhood(3, dilation=3, edges="shift"), 1) == [1, 4, 7]
    assert keys(Neighborhood(3, causal_axes=(0,)), 5) == [3, 4, 5]
    assert keys(Neighborhood(3, causal_axes=(0,), edges="shift"), 1) == [0, 1]
    assert keys(Neighborhood(4, stride=4), 5) == keys(Neighborhood(4, stride=4), 6) == [4, 5, 6, 7]
    assert keys(Neighborhood(4, stride=2, causal_axes=(0,)), 6) == [4, 5, 6]


@pytest.mark.parametrize("tokens", [Sequence(0), Coordinates(np.zeros((0, 2), np.int64))])
def test_no_tokens_have_no_neighbours(tokens: Tokens) -> None:
    for edges in ("clip", "shift"):
        assert expanded(Neighborhood(3, edges=edges), laid_over(tokens)).shape == (1, 0, 0)


def test_whole_stride_groups_share_their_keys() -> None:
    (part,) = Neighborhood(16, stride=8).parts(laid_over(Grid(64, 64)))
    assert isinstance(part, Blocks)
    assert part.seen is not None
    rows, bounds = part.sets.listed().rows, part.sets.listed().bounds
    for start, end in itertools.pairwise(bounds):
        seen = part.seen(rows[start:end, None], np.arange(64 * 64)[None])
        assert (seen == seen[0]).all()


def test_a_million_tokens_are_laid_out_in_memory_linear_in_them() -> None:
    grid, pattern = Grid(1024, 1024), Neighborhood(7, edges="shift")
    grid.coordinates  # noqa: B018 - belongs to the grid, and is kept there
    tracemalloc.start()
    try:
        (part,) = pattern.parts(laid_over(grid))
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(part, Blocks)
    assert (np.diff(part.sets.listed().bounds) == 64).all()
    assert np.diff(part.indptr).max() == 9
    assert peak < 256 * grid.N
    assert held < 128 * grid.N


@pytest.mark.parametrize(("axes", "extent", "most"), [(2, 400, 12), (3, 60, 45)])
def test_points_with_gaps_come_in_equal_blocks_that_see_few_others(
    axes: int, extent: int, most: int
) -> None:
    # Dense in one corner, sparse in the other.
    points = (np.random.default_rng(0).random((2**14, axes)) ** 2 * extent).astype(np.int64)
    (part,) = Neighborhood(5).parts(laid_over(Coordinates(points)))
    assert isinstance(part, Blocks)
    lengths = np.diff(part.sets.listed().bounds)
    assert (lengths == 64).mean() > 0.9
    assert np.diff(part.indptr).mean() < most


def test_far_points_cost_nothing_where_there_are_none() -> None:
    far = 2**31 - 1
    points = Coordinates([[0, 0, 0], [1, 1, 1], [far, far, far], [far, 0, far]])
    m = expanded(Neighborhood((7, 7, 7), (1, 5, 1)), laid_over(points))
    assert m[0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    "pattern",
    [
        Neighborhood(7),
        Neighborhood((3, 7, 7), (1, 2, 2), (1, 3, 1), "shift", (0,)),
        Neighborhood([3, 5], causal_axes=[1]),  # type: ignore[arg-type]
    ],
)
def test_a_pattern_survives_text_and_pickling(pattern: Neighborhood) -> None:
    assert Pattern.from_literal(ast.literal_eval(pattern.text)) == pattern
    assert pickle.loads(pickle.dumps(pattern)) == pattern


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("window", {"window": 0}),
        ("window", {"window": 2**31}),
        ("window", {"window": 2**70}),
        ("dilation", {"window": 3, "dilation": 2**70}),
        ("stride", {"window": 3, "stride": (2**70, 1)}),
        ("causal_axes", {"window": 3, "causal_axes": (2**70,)}),
        ("window", {"window": (3, 3, 3, 3)}),
        ("window", {"window": ()}),
        ("window", {"window": 3.0}),
        ("window", {"window": True}),
        ("window", {"window": (3, 3), "dilation": (1, 1, 1)}),
        ("dilation", {"window": 3, "dilation": 0}),
        ("dilation", {"window": 3, "dilation": (1, -1)}),
        ("stride", {"window": 3, "stride": 4}),
        ("stride", {"window": (5, 3), "stride": 4}),
        ("stride", {"window": 3, "stride": "1"}),
        ("edges", {"window": 3, "edges": "wrap"}),
        ("causal_axes", {"window": 3, "causal_axes": True}),
        ("causal_axes", {"window": 3, "causal_axes": (True,)}),
        ("causal_axes", {"window": 3, "causal_axes": (0, 0)}),
        ("causal_axes", {"window": 3, "causal_axes": (-1,)}),
        ("causal_axes", {"window": (3, 3), "causal_axes": (2,)}),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(
    argument: str, arguments: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        Neighborhood(**arguments)  # type: ignore[arg-type]
    assert refusal.value.argument == argument


POINTS = Coordinates([[0, 0], [5, 9], [2, 3], [2, 4]])


@pytest.mark.parametrize(
    ("pattern", "domain", "message"),
    [
        (Neighborhood((3, 3)), laid_over(Sequence(9)), "a tuple of 1, one per axis"),
        (Neighborhood((3, 3)), laid_over(Grid(3, 3, 3)), "a tuple of 3, one per axis"),
        (Neighborhood(3, causal_axes=(2,)), laid_over(Grid(3, 3)), r"causal_axes: .*, 0 \.\. 1"),
        (
            Neighborhood(3, edges="shift"),
            laid_over(Grid(3, 3), causal=True),
            "causal: .* edges='shift'",
        ),
        (
            Neighborhood((3, 4)),
            laid_over(Grid(9, 3)),
            r"window: .* <= 3, the extent of Grid\(9, 3\) on axis 1, got 4 \* 1 = 4",
        ),
        (Neighborhood(3, 2), laid_over(Grid(5, 9)), r"<= 5, .* axis 0, got 3 \* 2 = 6"),
        (Neighborhood(7, edges="shift"), laid_over(POINTS), "<= 6, the extent of Coordinates"),
        (
            Neighborhood(3, edges="shift"),
            laid_over(POINTS, [2, 2]),
            "<= 1, the extent of a document on axis 0",
        ),
        (
            Neighborhood(3, edges="shift"),
            laid_over(Grid(4, 4), [8, 8]),
            "<= 2, the extent of a document on axis 0",
        ),
        (Neighborhood(9, edges="shift"), laid_over(Sequence(8)), r"<= 8, .* Sequence\(N=8\)"),
        (
            Neighborhood(3, edges="shift"),
            laid_over(Sequence(8), [2, 6, 0]),
            "<= 2, the extent of a document",
        ),
    ],
)
def test_what_the_tokens_cannot_hold_is_refused_with_axis_and_sizes(
    pattern: Neighborhood, domain: Domain, message: str
) -> None:
    with pytest.raises(InvalidArgument, match=message):
        pattern.check(domain)


@pytest.mark.usefixtures("toy")
@settings(max_examples=60)
@given(
    st.one_of(on_a_sequence(), on_a_grid(), on_points()),
    st.booleans(),
    st.booleans(),
    st.sampled_from((torch.float32, torch.bfloat16)),
    st.integers(0, 2**16),
)
def test_attention_with_a_neighbourhood_is_the_formula(
    problem: tuple[Any, ...], causal: bool, with_sink: bool, dtype: torch.dtype, seed: int
) -> None:
    pattern, what, *rest = problem
    lengths = [what.N] if isinstance(what, Grid) else what
    tokens = what if isinstance(what, Grid) else Coordinates(rest[0]) if rest else None
    assume(sum(lengths) > 0)
    positions = np.concatenate([np.arange(n) for n in lengths])[:, None]
    m = defined(pattern, positions if tokens is None else tokens.coordinates, lengths)
    if causal := causal and pattern.edges == "clip":
        m = multiplicity.causal_part(m)
    make = torch.Generator().manual_seed(seed)
    q, k, v, grad_out = (
        torch.randn(2, len(positions), heads, 8, generator=make).to(dtype) for heads in (4, 2, 2, 4)
    )
    sink = torch.randn(4, generator=make) if with_sink else None
    exact = yardstick(q, k, v, m.expand(4, -1, -1), sink=sink, grad_out=grad_out)
    asked = {"grad_query": q, "grad_key": k, "grad_value": v}
    if sink is not None:
        asked["grad_sink"] = sink
    for x in asked.values():
        x.requires_grad_()
    out, lse = rs.attention(
        q,
        k,
        v,
        pattern=pattern,
        causal=causal,
        tokens=tokens,
        documents=None if isinstance(what, Grid) else rs.Documents.from_lengths(lengths),
        sink=sink,
        return_lse=True,
    )
    grads = torch.autograd.grad(out, list(asked.values()), grad_out)
    assert_exact({"out": out, "lse": lse, **dict(zip(asked, grads, strict=True))}, exact)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    ("pattern", "tokens"),
    [
        (Neighborhood(7, edges="shift"), Grid(128, 128)),
        (Neighborhood((3, 7, 7), (1, 2, 1), causal_axes=(0,)), Grid(16, 32, 32)),
        (Neighborhood(63, dilation=4), None),
    ],
)
def test_nothing_quadratic_is_allocated(pattern: Neighborhood, tokens: Grid | None) -> None:
    N = 2**14
    q, k, v = (torch.randn(1, N, 1, 4, requires_grad=True) for _ in range(3))
    tracemalloc.start()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            out = rs.attention(q, k, v, pattern=pattern, tokens=tokens)
            torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
        _, planned = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    events = profiler.profiler.kineto_results.events()
    assert max(event.nbytes() for event in events if event.name() == "[memory]") < N * N / 4
    assert planned < N * N
