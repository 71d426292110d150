"""Orderings as patterns and layouts use them: exact both ways, and a curve where it was asked."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import ringspan as rs
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ringspan import Along, Coordinates, Documents, Grid, Layout
from ringspan.contracts import Permutation, Sequence, Tokens
from ringspan.engine.call import Call
from ringspan.errors import BrokenContract, InvalidArgument, UnknownProvider
from ringspan.plan.activity import Seen
from ringspan.plan.orders import order
from ringspan.testing import multiplicity

pytestmark = pytest.mark.usefixtures("orderings")

ANYWHERE = ("back-to-front", "scrambled")
"""Orderings that serve any tokens."""
EVERY = (*ANYWHERE, "down-columns", "in-tiles")
DTYPES = (
    torch.bool, torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16,
    torch.float32, torch.float64, torch.complex64,
)  # fmt: skip


@st.composite
def some_tokens(draw: st.DrawFn, kinds: str = "sgc") -> Tokens:
    """A sequence, a grid, or coordinates with gaps and duplicates."""
    kind, axes = draw(st.sampled_from(kinds)), draw(st.integers(2, 3))
    if kind == "s":
        return Sequence(draw(st.integers(0, 40)))
    if kind == "g":
        return Grid(*draw(st.tuples(*[st.integers(1, 12 if axes == 2 else 4)] * axes)))
    points = draw(st.lists(st.tuples(*[st.integers(0, 9)] * axes), max_size=40))
    return Coordinates(np.array(points, np.int64).reshape(-1, axes))


@st.composite
def packed(draw: st.DrawFn, N: int) -> Documents:
    cuts = sorted(draw(st.lists(st.integers(0, N), max_size=4)))
    return Documents.from_lengths(np.diff([0, *cuts, N]))


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any layout with an ordering or without."""
    tokens = draw(some_tokens())
    plain = isinstance(tokens, Sequence)
    axes = None if plain else draw(st.permutations(range(tokens.coordinates.shape[1])))
    fold = plain and draw(st.booleans())
    along = Along(
        draw(st.sampled_from(EVERY if fold or not plain else ANYWHERE)),
        fold=fold,
        axes=None if axes is None or draw(st.booleans()) else tuple(axes),
        chunk=draw(st.none() | st.integers(1, 50)),
    )
    world_size = draw(st.integers(1, 4))
    cuts = sorted(
        draw(st.lists(st.integers(0, tokens.N), min_size=world_size - 1, max_size=world_size - 1))
    )
    return Layout(
        tokens,
        world_size,
        draw(st.sampled_from((along, along, along, along.ordering if not fold else along, None))),
        sizes=draw(st.sampled_from((None, tuple(np.diff([0, *cuts, tokens.N]).tolist())))),
        documents=None if isinstance(tokens, Grid) else draw(st.none() | packed(tokens.N)),
        block_size=draw(st.sampled_from((None, 1, 5, 64))),
        reason=draw(st.sampled_from(("", "because"))),
    )


def segments(N: int, documents: Documents | None, length: int) -> list[range]:
    """Every document cut into stretches of so many tokens, the last of each perhaps short."""
    lengths, start, found = [N] if documents is None else documents.lengths.tolist(), 0, []
    for n in lengths:
        found += [range(start + at, start + min(at + length, n)) for at in range(0, n, length)]
        start += n
    return found


def followed(ordering: str, points: list[tuple[int, ...]]) -> list[int]:
    """Numbers of the points along a toy ordering, told point by point."""
    numbers = list(range(len(points)))
    if ordering == "back-to-front":
        return numbers[::-1]
    if ordering == "scrambled":
        return np.random.RandomState(7).permutation(len(points)).tolist()
    if ordering == "down-columns":
        return sorted(numbers, key=lambda number: points[number][::-1])
    least = [min(axis) for axis in zip(*points, strict=True)]
    inside = [tuple(c - low for c, low in zip(p, least, strict=True)) for p in points]
    return sorted(
        numbers, key=lambda i: (*(c // 8 for c in inside[i]), *(c % 8 for c in inside[i]))
    )


def laid(along: Along, tokens: Tokens, stretches: list[range]) -> list[int]:
    """The token at each place where the curve begins anew in each of the stretches."""
    found: list[int] = []
    for stretch in stretches:
        if along.fold:
            columns = next(c for c in range(1, len(stretch) + 1) if c * c >= len(stretch))
            points = [divmod(i, columns) for i in range(len(stretch))]
        elif tokens.coordinates is None:
            points = [(0, 0)] * len(stretch)
        else:
            points = [tuple(tokens.coordinates[i].tolist()) for i in stretch]
        if along.axes is not None:
            points = [tuple(point[axis] for axis in along.axes) for point in points]
        found += [stretch.start + number for number in followed(along.ordering, points)]
    return found


@given(layouts(), st.sampled_from(DTYPES), st.integers(0, 2), st.booleans(), st.integers(0, 99))
def test_arranging_and_restoring_give_back_every_bit(
    layout: Layout, dtype: torch.dtype, dim: int, negative: bool, seed: int
) -> None:
    shape = [2, 3]
    shape.insert(dim, layout.N)
    x = torch.randint(-9, 9, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    dim = dim - 3 if negative else dim
    arranged = layout.arrange(x, dim=dim)
    assert arranged.dtype == dtype
    assert torch.equal(arranged, x.index_select(dim, torch.tensor(layout.order.copy())))
    assert torch.equal(layout.restore(arranged, dim=dim), x)
    assert torch.equal(layout.arrange(layout.restore(x, dim=dim), dim=dim), x)


@given(layouts(), st.sampled_from((torch.float64, torch.bfloat16)), st.integers(0, 99))
def test_gradients_are_moved_and_not_changed(layout: Layout, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x, upstream = (torch.randn(2, layout.N, 3, generator=generator).to(dtype) for _ in range(2))
    x.requires_grad_()
    there = torch.tensor(layout.order.copy())
    for found, defined in (
        (layout.arrange(x), x.index_select(1, there)),
        (layout.restore(x), x.index_select(1, there.argsort())),
    ):
        (grad,) = torch.autograd.grad(found, x, upstream)
        (expected,) = torch.autograd.grad(defined, x, upstream)
        assert torch.equal(grad, expected)


def test_arranging_has_derivatives_of_any_order() -> None:
    layout = Layout(Grid(2, 3), ordering="down-columns")
    x = torch.randn(1, 6, 2, dtype=torch.float64, requires_grad=True)
    for move in (layout.arrange, layout.restore):
        assert torch.autograd.gradcheck(move, (x,))
        assert torch.autograd.gradgradcheck(lambda x, move=move: move(x).sin(), (x,))


@pytest.mark.parametrize("N", [0, 1])
def test_few_tokens_are_no_exception(N: int) -> None:
    for ordering in (*ANYWHERE, Along("down-columns", fold=True), Along("scrambled", chunk=2)):
        layout = Layout(N, 2, ordering, documents=Documents.from_lengths([0, N, 0]))
        x = torch.randn(1, N, 2)
        assert layout.order.tolist() == list(range(N))
        assert torch.equal(layout.restore(layout.arrange(x)), x)
        assert layout.block_numbers(3).tolist() == [0] * N
    points = Coordinates(np.zeros((N, 3), np.int64))
    layout = Layout(points, ordering=Along("in-tiles", axes=(2, 0, 1), chunk=1))
    assert layout.coordinates(0).tolist() == [[0, 0, 0]] * N


@given(layouts())
def test_each_rank_holds_the_next_positions_of_the_order(layout: Layout) -> None:
    ranks = range(layout.world_size)
    assert torch.cat([layout.positions(rank) for rank in ranks]).tolist() == layout.order.tolist()
    assert [len(layout.positions(rank)) for rank in ranks] == list(layout.sizes)
    for rank in ranks:
        if layout.tokens.coordinates is not None:
            positions = layout.positions(rank).numpy()
            expected = layout.tokens.coordinates[positions].tolist()
            assert layout.coordinates(rank).tolist() == expected
        else:
            with pytest.raises(InvalidArgument, match="tokens"):
                layout.coordinates(rank)


@given(layouts(), st.sampled_from((1, 5, 64)))
def test_blocks_are_consecutive_places_of_one_rank(layout: Layout, block_size: int) -> None:
    blocks = [
        positions[at : at + block_size]
        for positions in (layout.positions(rank).tolist() for rank in range(layout.world_size))
        for at in range(0, len(positions), block_size)
    ]
    numbers = {position: number for number, block in enumerate(blocks) for position in block}
    found = layout.block_numbers(block_size)
    assert found.tolist() == [numbers[position] for position in range(layout.N)]
    stored = layout.stored_blocks
    if layout.block_size is None or layout.ordering is None:
        assert stored is None
    elif layout.block_size == block_size:
        assert stored is not None
        ends = itertools.pairwise(stored.bounds)
        assert [stored.rows[start:end].tolist() for start, end in ends] == blocks


@settings(max_examples=300)
@given(layouts())
def test_a_layout_s_order_is_that_of_its_stretches_told_one_by_one(layout: Layout) -> None:
    along = layout.along
    if along is None:
        assert layout.order.tolist() == list(range(layout.N))
        return
    length = along.chunk or max(layout.N, 1)
    assert isinstance(length, int)
    stretches = segments(layout.N, layout.documents, length)
    assert layout.order.tolist() == laid(along, layout.tokens, stretches)


@settings(max_examples=300)
@given(some_tokens("gc"), st.data())
def test_axes_turn_the_coordinates_before_they_are_put_in_order(
    tokens: Tokens, data: st.DataObject
) -> None:
    axes = tuple(data.draw(st.permutations(range(tokens.coordinates.shape[1]))))
    ordering = data.draw(st.sampled_from(("down-columns", "in-tiles")))
    turned = Coordinates(tokens.coordinates[:, list(axes)])
    found = Layout(tokens, ordering=Along(ordering, axes=axes)).order
    assert found.tolist() == Layout(turned, ordering=ordering).order.tolist()


@settings(max_examples=400)
@given(some_tokens(), st.integers(1, 45), st.booleans(), st.data())
def test_in_a_dilated_pattern_a_curve_begins_anew_where_it_is_told(
    tokens: Tokens, w: int, causal: bool, data: st.DataObject
) -> None:
    plain = isinstance(tokens, Sequence)
    fold = plain and data.draw(st.integers(0, 3)) > 0
    chunk = data.draw(st.sampled_from((None, "segment", "segment", 1, 4, 11)))
    along = Along(
        data.draw(st.sampled_from(EVERY[::-1] if fold or not plain else ANYWHERE)),
        fold=fold,
        axes=data.draw(st.sampled_from((None, (1, 0)))) if fold else None,
        chunk=chunk,
    )
    documents = None if isinstance(tokens, Grid) else data.draw(st.none() | packed(tokens.N))
    lengths, rates = (w, 2 * w + 1), (1, data.draw(st.integers(1, 4)))
    seen = Seen.of(
        rs.Dilated(lengths, rates, along=along), tokens, causal=causal, documents=documents
    )
    places = []
    for length in lengths:
        anew = chunk if isinstance(chunk, int) else length
        if chunk is None and not fold:
            anew = max(tokens.N, 1)
        order = torch.tensor(laid(along, tokens, segments(tokens.N, documents, anew)))
        places.append(order.long().argsort())
    alone, start = [], 0
    for n in [tokens.N] if documents is None else documents.lengths.tolist():
        own = [place[start : start + n] - start for place in places]
        alone.append(multiplicity.dilated(n, 1, 1, lengths, rates, places=own))
        start += n
    m = multiplicity.packed(alone)[0]
    m = multiplicity.causal_part(m[None])[0] if causal else m
    assert np.array_equal(seen.pairs(np.arange(tokens.N), tokens.N), m.numpy())


@given(layouts(), st.booleans())
def test_a_layout_survives_text_copies_and_pickling(layout: Layout, told: bool) -> None:
    call = Call(rs.Dense(), layout=layout, tokens=layout.tokens if told else None)
    if isinstance(layout.tokens, Sequence):
        call = Call(rs.Dense(), layout=layout)
    again = Call.from_text(call.text, layout.N).layout
    for other in (again, copy.deepcopy(layout), pickle.loads(pickle.dumps(layout))):
        assert other is not layout
        assert (other, hash(other), repr(other)) == (layout, hash(layout), repr(layout))
        assert other.order.tolist() == layout.order.tolist()
        assert (other.documents, other.block_size) == (layout.documents, layout.block_size)
    assert copy.deepcopy(layout).reason == layout.reason


def test_layouts_that_store_otherwise_differ_and_say_so() -> None:
    documents = Documents.from_lengths([2, 4])
    points = Coordinates(Grid(2, 3).coordinates)
    options: list[dict[str, Any]] = [
        {},
        {"ordering": "scrambled"},
        {"ordering": "down-columns"},
        {"ordering": Along("down-columns", axes=(1, 0))},
        {"ordering": Along("down-columns", chunk=4)},
        {"ordering": Along("down-columns", chunk=2)},
        {"ordering": "down-columns", "documents": documents},
        {"ordering": "down-columns", "block_size": 2},
        {"ordering": "down-columns", "block_size": None},
    ]
    several = [Layout(points, **each) for each in options]
    assert len({repr(layout) for layout in several}) == len(several)
    assert len({Call(rs.Dense(), layout=layout).text for layout in several}) == len(several)
    for at, layout in enumerate(several):
        assert [layout == other for other in several] == [at == i for i in range(len(several))]
    assert Layout(points, ordering=Along("scrambled")) == several[1]
    assert Layout(points, ordering="scrambled", reason="for once") == several[1]


@pytest.mark.parametrize(
    "pattern",
    [
        rs.Dilated((4, 8), (1, 2), along=Along("hilbert", axes=(1, 0), chunk="segment")),
        rs.Dense(window=(3, 0), along=Along("hilbert", axes=(2, 0, 1), chunk=7)),
        rs.Consecutive((4, 8), (1, 2), along=Along("hilbert", fold=True, chunk=5)),
        rs.BlockSparse.local(4, 1, 0, along=Along("hilbert", axes=[1, 0])),
    ],
)
def test_a_pattern_along_a_turned_curve_survives_text_and_pickling(pattern: rs.Pattern) -> None:
    again = Call.from_text(Call(pattern).text, 9).pattern
    for other in (again, copy.deepcopy(pattern), pickle.loads(pickle.dumps(pattern))):
        assert (other, hash(other), repr(other)) == (pattern, hash(pattern), repr(pattern))
        assert other.fingerprint == pattern.fingerprint


@given(st.integers(2, 3), st.data())
def test_a_mask_keeps_its_true_cells_row_after_row(axes: int, data: st.DataObject) -> None:
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * axes))
    cells = data.draw(st.lists(st.booleans(), min_size=math.prod(shape), max_size=math.prod(shape)))
    assume(any(cells))
    mask = np.array(cells).reshape(shape)
    expected = [list(cell) for cell in np.ndindex(shape) if mask[cell]]
    for given_as in (mask, torch.tensor(mask), mask.tolist(), mask.T.copy().T):
        assert Coordinates.from_mask(given_as).coordinates.tolist() == expected
    whole = Coordinates.from_mask(np.ones(shape, bool)).coordinates
    assert np.array_equal(whole, Grid(*shape).coordinates)


@given(st.lists(st.lists(st.tuples(*[st.integers(0, 9)] * 2), max_size=6), min_size=1, max_size=4))
def test_packed_sets_of_points_are_documents_in_their_order(sets: list[Any]) -> None:
    arrays = [np.array(points, np.int64).reshape(-1, 2) for points in sets]
    kinds = (lambda x: x, torch.from_numpy, Coordinates)
    points, documents = Coordinates.pack(kinds[i % 3](x) for i, x in enumerate(arrays))
    assert points.coordinates.tolist() == np.concatenate(arrays).tolist()
    assert documents.lengths.tolist() == list(map(len, sets))
    layout = Layout(points, ordering="down-columns", documents=documents)
    starts = np.cumsum([0, *map(len, sets)])
    expected = [
        start + number
        for start, each in zip(starts, sets, strict=False)
        for number in followed("down-columns", each)
    ]
    assert layout.order.tolist() == expected


@given(st.lists(st.integers(0, 12), min_size=1, max_size=13))
def test_what_is_no_permutation_is_told_where_it_first_goes_wrong(values: list[int]) -> None:
    outside = [at for at, value in enumerate(values) if value >= len(values)]
    repeated = [at for at, value in enumerate(values) if value in values[:at]]
    for build in (Permutation.from_tokens, Permutation.from_places):
        if not outside and not repeated:
            both = build(torch.tensor(values))
            assert both.places[both.tokens].tolist() == list(range(len(values)))
            continue
        with pytest.raises(BrokenContract, match="permutation") as refusal:
            build(torch.tensor(values))
        if outside:
            assert refusal.value.got == f"{values[outside[0]]} at index {outside[0]}"
        else:
            value = values[repeated[0]]
            assert refusal.value.got == (
                f"{value} at index {repeated[0]} again, after index {values.index(value)}"
            )


REFUSED: list[tuple[str, Any]] = [
    ("Coordinates", lambda: Coordinates([[0, -1]])),
    ("Coordinates", lambda: Coordinates(torch.tensor([[0, 2**31]]))),
    ("Coordinates", lambda: Coordinates(np.array([[2**63, 0]], np.uint64))),
    ("Coordinates", lambda: Coordinates(np.array([[0.0, 1.0]]))),
    ("Coordinates", lambda: Coordinates([[0, 1], [2]])),
    ("Coordinates", lambda: Coordinates([[True, False]])),
    ("mask", lambda: Coordinates.from_mask(np.zeros((3, 3), bool))),
    ("mask", lambda: Coordinates.from_mask(np.zeros((0, 3), bool))),
    ("mask", lambda: Coordinates.from_mask([[0, 1], [1, 1]])),
    ("mask", lambda: Coordinates.from_mask([True, False])),
    ("mask", lambda: Coordinates.from_mask([[True], [True, False]])),
    ("mask", lambda: Coordinates.from_mask(None)),
    ("sets", lambda: Coordinates.pack([])),
    ("sets", lambda: Coordinates.pack([[[0, 0]], [[0, 0, 0]]])),
    ("Coordinates", lambda: Coordinates.pack([[[0, 0]], [[0, -1]]])),
    ("N", lambda: Layout(5, tokens=Grid(2, 3))),
    ("ordering", lambda: Layout(6, ordering=("scrambled",))),
    ("ordering", lambda: Layout(6, ordering=Along("scrambled", chunk="segment"))),
    ("along", lambda: Along(3)),
    ("along", lambda: Along("scrambled", fold=1)),
    ("along", lambda: rs.Dilated((4,), (1,), along=("scrambled",))),
    ("axes", lambda: Along("scrambled", axes=(0, 0))),
    ("axes", lambda: Along("scrambled", axes=(1, 2))),
    ("axes", lambda: Along("scrambled", axes=(0,))),
    ("axes", lambda: Along("scrambled", axes="10")),
    ("axes", lambda: Along("scrambled", axes=(True, False))),
    ("axes", lambda: Along("scrambled", axes=(1.0, 0.0))),
    ("axes", lambda: Layout(6, ordering=Along("scrambled", axes=(1, 0))).order),
    ("axes", lambda: Layout(Grid(2, 3), ordering=Along("scrambled", axes=(2, 1, 0))).order),
    ("chunk", lambda: Along("scrambled", chunk=0)),
    ("chunk", lambda: Along("scrambled", chunk=True)),
    ("chunk", lambda: Along("scrambled", chunk=2.0)),
    ("chunk", lambda: Along("scrambled", chunk="document")),
    ("block_size", lambda: Layout(6, block_size=0)),
    ("block_size", lambda: Layout(6, block_size=True)),
    ("block_size", lambda: Layout(6, block_size=64.0)),
    ("reason", lambda: Layout(6, reason=None)),
    ("documents", lambda: Layout(6, documents=[6])),
    ("documents", lambda: Layout(6, documents=Documents.from_lengths([5]))),
    ("tokens", lambda: Layout(Grid(2, 3), documents=Documents.from_lengths([2, 4]))),
    ("along", lambda: Layout(Grid(2, 3), ordering=Along("scrambled", fold=True)).order),
    ("tokens", lambda: Layout(6, ordering="down-columns").order),
    ("tokens", lambda: Layout.best(6, rs.Dense(), orderings=("down-columns",))),
    ("pattern", lambda: Layout.best(6, "dense")),
    ("block_size", lambda: Layout.best(6, rs.Dense(), 0)),
    ("x", lambda: Layout(6, ordering="scrambled").arrange(torch.zeros(1, 5))),
    ("x", lambda: Layout(6).restore(torch.zeros(1, 5))),
    ("x", lambda: Layout(6).arrange(np.zeros((1, 6)))),
    ("dim", lambda: Layout(6).arrange(torch.zeros(1, 6), dim=2)),
    ("rank", lambda: Layout(Grid(2, 3), 2).coordinates(2)),
]


@pytest.mark.parametrize(("name", "attempt"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(name: str, attempt: Any) -> None:
    with pytest.raises(InvalidArgument, match="expected") as refusal:
        attempt()
    assert refusal.value.argument == name


def test_orders_are_built_once_and_cannot_be_written_to() -> None:
    first = Layout(Grid(3, 4), ordering="scrambled").order
    assert first is Layout(Grid(3, 4), weights=(2.0,), ordering="scrambled").order
    # Also where a pattern follows the curve by which tokens are stored.
    assert first is order("scrambled", Grid(3, 4))
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1


LINES = rs.BlockSparse.from_mask(6, lambda q, k: q[1] == k[1], Grid(12, 5))
"""A token sees its column."""


def counted(seen: np.ndarray, layout: Layout, block_size: int) -> int:
    """The pairs of blocks in which something is seen."""
    number = layout.block_numbers(block_size)
    return len({(int(number[i]), int(number[j])) for i, j in zip(*np.nonzero(seen), strict=True)})


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("world_size", "block_size"), [(1, 6), (1, 7), (3, 6), (2, 64)])
def test_the_best_layout_has_the_fewest_active_blocks_and_says_how_many_all_have(
    orderings: tuple[str, ...], world_size: int, block_size: int, causal: bool
) -> None:
    column = Grid(12, 5).coordinates[:, 1]
    seen = column[:, None] == column
    seen = np.tril(seen) if causal else seen
    counts = {
        name: counted(seen, Layout(Grid(12, 5), world_size, name), block_size)
        for name in (None, *orderings)
    }
    best = Layout.best(Grid(12, 5), LINES, block_size, world_size=world_size, causal=causal)
    assert counts[best.ordering] == min(counts.values())
    assert best.ordering is None or counts[best.ordering] < counts[None]
    assert (best.world_size, best.tokens) == (world_size, Grid(12, 5))
    for name, count in counts.items():
        group = next(each for each in best.reason.split(": ")[-1].split("; ")
                     if each.startswith(f"{count} "))  # fmt: skip
        assert (name or "identity") in group.split(" ", 1)[1].split(", ")
    if best.ordering is not None:
        assert best.reason.startswith(f"{counts[best.ordering] / counts[None]:.2f} of the order")
    else:
        assert best.reason.startswith("no ordering has fewer")


def test_of_equally_good_orderings_the_order_of_positions_wins_and_then_the_first() -> None:
    grid = Grid(16, 16)
    assert Layout.best(grid, rs.Dense(), 8).contiguous
    # From its last token backwards a grid has as many active blocks as forwards.
    column, square = (
        rs.BlockSparse.from_mask(8, predicate, grid)
        for predicate in (
            lambda q, k: q[1] == k[1],
            lambda q, k: (q // 4 == k // 4).all(0),
        )
    )
    assert Layout.best(grid, column, 8, orderings=("back-to-front",)).contiguous
    assert Layout.best(grid, square, 8, orderings=("down-columns", "up-columns")).contiguous
    for names in (("down-columns", "up-columns"), ("up-columns", "down-columns")):
        assert Layout.best(grid, column, 8, orderings=names).ordering == names[0]


def test_the_best_layout_of_documents_orders_each_alone() -> None:
    points, documents = Coordinates.pack([Grid(8, 8).coordinates, Grid(4, 16).coordinates])
    pattern = rs.Neighborhood((7, 1))
    best = Layout.best(points, pattern, 8, documents=documents)
    assert best.documents == documents
    assert best.ordering == "down-columns"
    assert sorted(best.order[:64].tolist()) == list(range(64))


def test_an_unknown_ordering_is_refused_by_name_also_among_others() -> None:
    for attempt in (
        lambda: Layout(Grid(2, 3), ordering=Along("peano", chunk=2)).order,
        lambda: Layout.best(Grid(2, 3), rs.Dense(), orderings=("scrambled", "peano")),
    ):
        with pytest.raises(UnknownProvider, match="peano"):
            attempt()


def test_an_ordering_that_fails_for_another_reason_is_not_merely_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise InvalidArgument("extent", expected="small", got="large")

    monkeypatch.setattr("ringspan.plan.layout.order", broken)
    with pytest.raises(InvalidArgument, match="extent"):
        Layout.best(Grid(2, 3), rs.Dense())
