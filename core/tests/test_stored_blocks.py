"""Blocks of storage: exactly the pairs that the definition says, however tokens are stored."""

from __future__ import annotations

import itertools
import tracemalloc
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import ringspan as rs
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ringspan import Along, Documents, Grid, Layout, Neighborhood
from ringspan.catalogue import catalogue, configuration
from ringspan.contracts import Blocks, Domain, Indexed, Part
from ringspan.plan.activity import Seen
from ringspan.plan.orders import order
from ringspan.plan.processing import stored_order
from ringspan.plan.schedule import make_plan
from ringspan.testing import assert_exact, toy_whole, yardstick
from ringspan.testing.case import Case
from ringspan.testing.strategies import cases

if TYPE_CHECKING:
    from collections.abc import Iterator

ORDERINGS = ("back-to-front", "scrambled", "down-columns", "in-tiles")
OF_TWO_TOKENS = ("Neighborhood", "BlockSparse.from_mask")
"""Patterns that say of any two tokens whether one sees the other."""
BLOCKS = (
    *OF_TWO_TOKENS,
    "BlockSparse.local",
    "BlockSparse.local_global",
    "BlockSparse.dilated_blocks",
    "BlockSparse.from_blocks",
)


@st.composite
def problems(draw: st.DrawFn, kinds: tuple[str, ...] = OF_TWO_TOKENS) -> Case:
    """Patterns alone: every query, no padding, in order of position."""
    case = draw(cases(max_N=60, kinds=kinds, orderings=["identity"]))
    fields = {name: value for name, value in case.pattern.fields.items() if name != "along"}
    pattern = replace(case.pattern, fields=fields)
    return replace(case, pattern=pattern, positions=None, cross=None, stored=None, padding=None)


@st.composite
def shuffled(draw: st.DrawFn, case: Case, most_ranks: int = 3) -> Layout:
    """Tokens stored in any order, on ranks of any sizes, in blocks of any size."""
    ranks = draw(st.integers(1, most_ranks))
    cuts = sorted(draw(st.lists(st.integers(0, case.N), min_size=ranks - 1, max_size=ranks - 1)))
    layout = Layout(
        case.tokens(),
        ranks,
        sizes=tuple(b - a for a, b in itertools.pairwise((0, *cuts, case.N))),
        block_size=draw(st.integers(1, 12) | st.sampled_from((case.N, 64))),
    )
    # Naming this order would need an ordering plugin for each.
    layout.ordering = "shuffled"
    layout.__dict__["order"] = np.random.RandomState(draw(st.integers(0, 99))).permutation(case.N)
    return layout


def documents_of(case: Case) -> Documents | None:
    return None if case.documents is None else Documents.from_lengths(case.documents)


def domain_of(case: Case, layout: Layout) -> Domain:
    documents = documents_of(case)
    return Domain(
        layout.tokens, case.heads, case.kv_heads, order, documents, case.causal,
        layout.stored_blocks,
    )  # fmt: skip


def defined(case: Case) -> np.ndarray:
    """Who sees whom, of any head, before causality."""
    return replace(case, causal=False).multiplicity()[0].numpy() > 0


def active(seen: np.ndarray, numbers: np.ndarray) -> set[tuple[int, int]]:
    """The pairs of blocks in which something is seen, pair by pair of tokens."""
    return {(int(numbers[i]), int(numbers[j])) for i, j in zip(*np.nonzero(seen), strict=True)}


def pairs_of(part: Blocks) -> list[tuple[int, int]]:
    rows = np.repeat(np.arange(len(part.indptr) - 1), np.diff(part.indptr))
    return list(zip(rows.tolist(), part.indices.tolist(), strict=True))


def shown(part: Part, N: int) -> np.ndarray:
    """How often each query sees each key, read from compressed rows by the letter."""
    assert isinstance(part, Blocks)
    m = np.zeros((N, N), np.int64)
    rows, bounds = part.sets.listed().rows, part.sets.listed().bounds
    for i, j in pairs_of(part):
        query = rows[bounds[i] : bounds[i + 1], None]
        key = rows[None, bounds[j] : bounds[j + 1]]
        m[query, key] += 1 if part.seen is None else part.seen(query, key)
    return m


@settings(max_examples=200)
@given(problems(), st.data())
def test_the_active_pairs_of_blocks_of_storage_are_those_of_the_definition(
    case: Case, data: st.DataObject
) -> None:
    assume(case.grid or case.pattern.kind != "Neighborhood")  # on a line, windows say it
    layout = data.draw(shuffled(case))
    pattern, domain = case.pattern.built(rs), domain_of(case, layout)
    stored = layout.stored_blocks
    assert stored is not None
    parts = list(pattern.parts(domain))
    if case.pattern.kind == "BlockSparse.from_mask" and (
        case.documents is not None or not pattern.blocks.partial.any()
    ):
        # Tokens of several documents share a block of storage, whose pairs were counted alone;
        # and whole blocks stay whole.
        assert all(part.sets is not stored for part in parts)
        return
    (part,) = parts
    assert part.sets is stored
    seen = defined(case)
    pairs = pairs_of(part)
    assert pairs == sorted(active(seen, layout.block_numbers(layout.block_size or 1)))
    assert np.array_equal(shown(part, case.N), seen)
    everyone = np.arange(case.N)
    if part.seen is not None:
        assert np.array_equal(part.seen(everyone[:, None], everyone), seen)


@given(problems(BLOCKS), st.data())
def test_the_order_in_which_blocks_are_computed_changes_nobody_s_sight(
    case: Case, data: st.DataObject
) -> None:
    layout = data.draw(shuffled(case))
    place = np.argsort(layout.order)
    for part in case.pattern.built(rs).parts(replace(domain_of(case, layout), stored=None)):
        if not isinstance(part, Blocks):
            assert stored_order(part, layout) is part
            continue
        moved = stored_order(part, layout)
        assert isinstance(moved, Blocks)
        assert moved.heads == part.heads
        assert np.array_equal(shown(moved, case.N), shown(part, case.N))
        rows, bounds = moved.sets.listed().rows, moved.sets.listed().bounds
        firsts = [place[rows[a:b]].min() for a, b in itertools.pairwise(bounds) if b > a]
        assert firsts == sorted(firsts)
        for start, end in itertools.pairwise(moved.indptr):
            assert (np.diff(moved.indices[start:end]) > 0).all()


@given(problems(BLOCKS), st.data())
def test_as_a_whole_blocks_say_the_same_of_rows_as_they_are_stored(
    case: Case, data: st.DataObject
) -> None:
    assume(case.documents is None or case.pattern.kind == "Neighborhood")
    layout = data.draw(shuffled(case, most_ranks=1))
    plan = make_plan(
        case.pattern.built(rs), causal=case.causal, heads=case.heads, kv_heads=case.kv_heads,
        layout=layout, rank=0, documents=documents_of(case),
    )  # fmt: skip
    assume(plan.whole is not None)
    m = np.zeros((case.N, case.N), np.int64)
    for tiles in plan.whole.tiles:  # type: ignore[union-attr]
        assert tiles.blocks is not None
        rows = tiles.query
        stored = rows.rows[0, 0] if isinstance(rows, Indexed) else np.arange(case.N)
        position = layout.order[stored]
        m[position[:, None], position] += read(tiles.blocks)
    assert np.array_equal(m, case.multiplicity()[0].numpy())


def read(blocks: Any) -> np.ndarray:
    """Every pair of rows, from compressed rows by the letter."""
    bounds, indptr, indices, bitmap, bitmaps = (x.numpy() for x in blocks.on(torch.device("cpu")))
    seen = np.zeros((bounds[-1],) * 2, bool)
    for i, (start, end) in enumerate(itertools.pairwise(indptr)):
        for pair in range(start, end):
            j = indices[pair]
            tile = seen[bounds[i] : bounds[i + 1], bounds[j] : bounds[j + 1]]
            if bitmap[pair] < 0:
                tile |= True
            else:
                tile |= bitmaps[bitmap[pair]][: tile.shape[0], : tile.shape[1]]
    return seen


@st.composite
def stored_calls(draw: st.DrawFn) -> tuple[Case, dict[str, Any]]:
    """A call, and how its tokens are stored on one rank."""
    case = draw(cases(max_N=48, kinds=BLOCKS, orderings=["identity"]))
    case = replace(case, positions=None, cross=None, stored=None)
    fields = {name: value for name, value in case.pattern.fields.items() if name != "along"}
    case = replace(case, pattern=replace(case.pattern, fields=fields))
    plain = not case.grid
    along = Along(
        draw(st.sampled_from(ORDERINGS[:2] if plain else ORDERINGS)),
        axes=None if plain else tuple(draw(st.permutations(range(len(case.grid))))),
        chunk=draw(st.sampled_from((None, 1, 7, 20))),
    )
    documents = documents_of(case) if draw(st.booleans()) else None
    size = draw(st.sampled_from((None, 1, 5, 16, 64)))
    return case, {"ordering": along, "documents": documents, "block_size": size}


@pytest.fixture
def toy_that_takes_blocks(toy: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The toy's plugin offers a backend that takes blocks whole."""
    offered = toy_whole.ringspan_attention_backends
    monkeypatch.setattr("ringspan.testing.toy.ringspan_attention_backends", offered)
    catalogue.cache_clear()
    with configuration().use(backend="toy-whole"):
        yield
    catalogue.cache_clear()


@pytest.mark.usefixtures("orderings")
@pytest.mark.parametrize("backend", ["toy", "toy_that_takes_blocks"])
def test_any_block_sparse_call_is_exact_however_its_tokens_are_stored(
    request: pytest.FixtureRequest, backend: str
) -> None:
    request.getfixturevalue(backend)
    decided: set[str] = set()

    @settings(max_examples=60)
    @given(stored_calls())
    def on_one_rank(call: tuple[Case, dict[str, Any]]) -> None:
        case, stored = call
        options = case.arguments()
        layout = Layout(options.pop("tokens", case.N), **stored)
        sink = options.pop("sink", None)
        q, k, v, grad_out = case.inputs()
        leaves = [x.requires_grad_() for x in (q, k, v, sink) if x is not None]
        out, lse = rs.attention(
            *map(layout.arrange, (q, k, v)), pattern=case.pattern.built(rs), sink=sink,
            return_lse=True, layout=layout, **options,
        )  # fmt: skip
        if run := rs.last_run():
            decided.update(run.decisions)
        out, lse = layout.restore(out), layout.restore(lse, dim=2)
        grads = torch.autograd.grad(out, leaves, grad_out)
        names = ("grad_query", "grad_key", "grad_value", "grad_sink")
        found = {"out": out, "lse": lse, **dict(zip(names, grads, strict=False))}
        formula = yardstick(
            *(x.detach() for x in (q, k, v)), case.multiplicity(order), scale=case.scale(),
            sink=case.sink_logits(), grad_out=grad_out, extras=case.extras(),
        )  # fmt: skip
        assert_exact(found, formula)

    on_one_rank()
    assert ("backend (blocks)" in decided) == (backend != "toy")


@pytest.mark.usefixtures("orderings", "toy")
@settings(max_examples=60)
@given(problems(BLOCKS), st.integers(1, 3), st.sampled_from((1, 4, 64)), st.data())
def test_explain_counts_the_active_blocks_of_every_ordering_that_serves(
    case: Case, world_size: int, block_size: int, data: st.DataObject
) -> None:
    plain = not case.grid
    served = ORDERINGS[:2] if plain else (*ORDERINGS, "up-columns")
    documents = documents_of(case)
    chunk = data.draw(st.sampled_from((None, 3)))
    own = Along(data.draw(st.sampled_from(served)), chunk=chunk)
    layout = Layout(case.tokens(), world_size, own, block_size=block_size, documents=documents)
    inputs = rs.Inputs(N=case.N, heads=case.heads, kv_heads=case.kv_heads, head_dim=4)
    report = rs.explain(
        inputs, pattern=case.pattern.built(rs), causal=case.causal, layout=layout,
        documents=documents,
    )  # fmt: skip
    if plain and case.pattern.kind == "Neighborhood":
        assert report.active_blocks is None
        return
    found = report.active_blocks
    seen = case.multiplicity().numpy().any(axis=0)
    if found is None:
        # Blocks are of one rank; without coordinates, a sequence on several is no such problem.
        assert plain
        assert world_size > 1 or not seen.any()
        return
    assert found.block_size == block_size
    named = {name: Layout(case.tokens(), world_size, name, documents=documents) for name in served}
    named["identity"] = Layout(case.tokens(), world_size)
    if not np.array_equal(layout.order, named[own.ordering].order):
        named["as stored"] = layout
    assert found.counts == {
        name: len(active(seen, each.block_numbers(block_size))) for name, each in named.items()
    }
    assert str(found) in str(report)
    assert report.as_dict()["active_blocks"]["counts"] == found.counts


@pytest.mark.usefixtures("orderings")
def test_a_large_neighbourhood_is_planned_in_memory_linear_in_its_tokens() -> None:
    grid = Grid(512, 512)
    layout = Layout(grid, ordering="in-tiles")
    assert layout.stored_blocks is not None
    tracemalloc.start()
    try:
        plan = make_plan(Neighborhood(7), causal=False, kv_heads=1, layout=layout, rank=0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert plan.area == (512 * 7 - 12) ** 2
    assert peak < 1600 * grid.N


@pytest.mark.usefixtures("orderings")
def test_a_large_neighbourhood_has_as_many_active_blocks_as_can_be_counted_by_hand() -> None:
    grid = Grid(128, 128)
    numbers = {name: Layout(grid, ordering=name).block_numbers(64) for name in ORDERINGS}
    seen = Seen.of(Neighborhood(13), grid)
    # A square tile of 8 x 8 sees itself and its neighbours: 16 x 16 of those.
    assert seen.active(numbers["in-tiles"], 256) == (16 * 3 - 2) ** 2
    # Half a column of 128 sees those of 13 columns, of its own half and the next.
    assert seen.active(numbers["down-columns"], 256) == 4 * (128 * 13 - 42)
