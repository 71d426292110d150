"""Block-sparse patterns against their definition, pair by pair, and what they cost to build."""

from __future__ import annotations

import ast
import copy
import gc
import itertools
import os
import pickle
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
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
)
from ringspan.errors import InvalidArgument
from ringspan.patterns import BlockSparse
from ringspan.testing import assert_exact, multiplicity, yardstick
from torch.nn.attention.flex_attention import create_block_mask, flex_attention
from torch.profiler import ProfilerActivity, profile

HEADS = 2
Seen = Callable[[Any, Any], Any]


def backwards(name: str, tokens: Tokens) -> np.ndarray:
    """An ordering: the last token stands first."""
    return np.arange(tokens.N)[::-1].copy()


def laid_over(tokens: Tokens, documents: Several[int] | None = None) -> Domain:
    packed = None if documents is None else Documents.from_lengths(documents)
    return Domain(tokens, HEADS, 1, backwards, packed)


def expanded(pattern: Pattern, domain: Domain) -> torch.Tensor:
    """`m(i, j)` of head 0, from the parts, which must keep the contract."""
    pattern.check(domain)
    m = np.zeros((domain.N, domain.N), np.int64)
    for part in pattern.parts(domain):
        assert isinstance(part, Blocks)
        assert part.heads == tuple(range(HEADS))
        rows, bounds = part.sets.listed().rows, part.sets.listed().bounds
        assert len(np.unique(rows)) == len(rows) == domain.N
        assert len(part.indptr) == len(bounds)
        for number, (start, end) in enumerate(itertools.pairwise(bounds)):
            assert end > start
            others = part.indices[part.indptr[number] : part.indptr[number + 1]]
            assert (np.diff(others) > 0).all()
            for other in others:
                query, key = rows[start:end, None], rows[None, bounds[other] : bounds[other + 1]]
                m[query, key] += 1 if part.seen is None else part.seen(query, key)
    return torch.from_numpy(m)[None]


def defined(block_size: int, seen: Callable[[int], Seen], lengths: Several[int]) -> torch.Tensor:
    """The definition for each document alone; `seen` may depend on its number of blocks."""
    return multiplicity.packed(
        [
            multiplicity.block_sparse(length, block_size, seen(-(-length // block_size)))
            for length in lengths
        ]
    )


@st.composite
def rules(draw: st.DrawFn) -> tuple[BlockSparse, Seen]:
    """A builder's pattern, and when it shows block `j` to block `i`."""
    size, left, right = (draw(st.integers(low, 7)) for low in (1, 0, 0))
    builder = draw(st.sampled_from(("local", "local_global", "dilated_blocks")))
    if builder == "local":
        return BlockSparse.local(size, left, right), lambda i, j: i - left <= j <= i + right
    if builder == "dilated_blocks":
        dilation = right + 1
        return (
            BlockSparse.dilated_blocks(size, left, dilation),
            lambda i, j: (i - j) % dilation == 0 and abs(i - j) <= left * dilation,
        )
    many = draw(st.integers(0, 9))
    return (
        BlockSparse.local_global(size, left, right, many),
        lambda i, j: i - left <= j <= i + right or i < many or j < many,
    )


lengths = st.lists(st.integers(0, 60), min_size=1, max_size=4)


@settings(max_examples=200)
@given(rules(), lengths)
def test_rules_restart_at_each_document_as_the_definition_says(
    rule: tuple[BlockSparse, Seen], lengths: list[int]
) -> None:
    pattern, seen = rule
    m = expanded(pattern, laid_over(Sequence(sum(lengths)), lengths))
    assert torch.equal(m, defined(pattern.block_size, lambda _: seen, lengths))


@given(rules(), st.integers(0, 60))
def test_along_an_ordering_blocks_are_of_places(rule: tuple[BlockSparse, Seen], N: int) -> None:
    pattern, seen = rule
    along = BlockSparse(pattern.block_size, pattern.blocks, along="backwards")
    places = torch.arange(N - 1, -1, -1)
    assert torch.equal(
        expanded(along, laid_over(Sequence(N))),
        multiplicity.in_places(defined(pattern.block_size, lambda _: seen, [N]), places),
    )


@given(st.integers(1, 20), st.integers(0, 70), st.integers(1, 3), st.integers(0, 2**16))
def test_a_predicate_of_blocks_is_evaluated_for_each_pair(
    size: int, N: int, documents: int, seed: int
) -> None:
    table = np.random.default_rng(seed).random((71, 71)) < 0.4
    pattern = BlockSparse.from_blocks(size, lambda i, j: table[i, j], N)
    m = expanded(pattern, laid_over(Sequence(N * documents), [N, 0] * documents))
    assert torch.equal(m, defined(size, lambda _: lambda i, j: table[i, j], [N] * documents))


@given(
    st.integers(1, 20),
    st.integers(0, 70),
    st.integers(1, 3),
    st.sampled_from((0.05, 0.5, 0.99, 1.0)),
    st.integers(0, 2**16),
)
def test_a_predicate_of_positions_is_evaluated_for_each_pair(
    size: int, N: int, documents: int, share: float, seed: int
) -> None:
    table = np.random.default_rng(seed).random((N, N)) < share
    pattern = BlockSparse.from_mask(size, lambda i, j: table[i, j], N)
    m = expanded(pattern, laid_over(Sequence(N * documents), [N] * documents))
    assert torch.equal(m, defined(1, lambda _: lambda i, j: table[i, j], [N] * documents))


@pytest.mark.parametrize(
    "tokens", [Grid(6, 7), Grid(2, 5, 3), Coordinates([[9, 1], [4, 4], [9, 2], [0, 0]])]
)
def test_a_predicate_of_coordinates_gets_an_array_per_axis(tokens: Grid | Coordinates) -> None:
    def near(query: Any, key: Any) -> Any:
        first, *_ = query - key
        return (abs(first) <= 1) & (abs(query - key).sum(0) <= 3)

    points = tokens.coordinates
    distance = abs(points[:, None] - points[None])
    expected = (distance[..., 0] <= 1) & (distance.sum(-1) <= 3)
    for predicate in (near, lambda query, key: bool(near(query, key))):
        pattern = BlockSparse.from_mask(4, predicate, tokens)
        m = expanded(pattern, laid_over(tokens))
        assert torch.equal(m, torch.from_numpy(expected.astype(np.int64))[None])


@pytest.mark.parametrize(
    "predicate",
    [
        lambda i, j: j <= i and i - j < 5,
        lambda i, j: (i, j) in {(0, 0), (3, 2)},
        lambda i, j: True,
        lambda i, j: i % 2 == 0,
        lambda i, j: torch.as_tensor(i) >= torch.as_tensor(j),
    ],
)
def test_predicates_may_be_of_arrays_of_numbers_of_one_side_or_constant(predicate: Seen) -> None:
    of_blocks = BlockSparse.from_blocks(4, predicate, 50)
    assert torch.equal(
        expanded(of_blocks, laid_over(Sequence(50))), defined(4, lambda _: predicate, [50])
    )
    of_tokens = BlockSparse.from_mask(4, predicate, Sequence(12))
    assert torch.equal(
        expanded(of_tokens, laid_over(Sequence(12))), defined(1, lambda _: predicate, [12])
    )


DOCUMENT = torch.repeat_interleave(torch.arange(3), torch.tensor([100, 41, 115]))


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    "mask_mod",
    [
        lambda q, k: q >= k,
        lambda q, k: (q >= k) & (q - k <= 30),
        lambda q, k: (k < 50) | (q >= k),
        lambda q, k: (DOCUMENT[q] == DOCUMENT[k]) & (q >= k),
        lambda q, k: abs(q // 16 - k // 16) + abs(q % 16 - k % 16) <= 5,
    ],
    ids=["causal", "sliding window", "prefix", "documents", "grid"],
)
def test_masks_give_flex_attention_s_blocks_and_outputs(mask_mod: Seen) -> None:
    N, size = 256, 32
    theirs = create_block_mask(
        lambda b, h, q, k: mask_mod(q, k), None, None, N, N, device="cpu", BLOCK_SIZE=size
    )
    pattern = BlockSparse.from_mask(size, lambda i, j: mask_mod(*map(torch.tensor, (i, j))), N)
    blocks = pattern.blocks
    row = np.repeat(np.arange(N // size), np.diff(blocks.indptr))
    ours = np.zeros((N // size, N // size), dtype=np.int64)
    ours[row, blocks.indices] = 1
    assert np.array_equal(ours, theirs.to_dense()[0, 0].numpy())
    assert (~blocks.partial).sum() == theirs.full_kv_num_blocks.sum()
    assert blocks.partial.sum() == theirs.kv_num_blocks.sum()
    q, k, v = torch.randn(3, 1, N, 2, 8, dtype=torch.float64).unbind()
    flex = flex_attention(*(x.transpose(1, 2) for x in (q, k, v)), block_mask=theirs)
    torch.testing.assert_close(rs.attention(q, k, v, pattern=pattern), flex.transpose(1, 2))


def test_chunks_of_a_large_predicate_join_without_a_seam() -> None:
    N = 64 * 79
    pattern = BlockSparse.from_mask(64, lambda i, j: abs(i - j) <= 100, N)
    (whole, part) = pattern.parts(laid_over(Sequence(N)))
    assert isinstance(part, Blocks)
    assert part.seen is not None
    assert isinstance(whole, Blocks)
    assert whole.seen is None
    block = np.arange(N // 64)
    gap = 64 * abs(block[:, None] - block[None])
    assert len(whole.indices) == (gap + 63 <= 100).sum()
    assert len(part.indices) == ((gap - 63 <= 100) & (gap + 63 > 100)).sum()
    query = np.arange(64 * 40, 64 * 41)[:, None]
    for key in (np.arange(64 * 38, 64 * 39)[None], np.arange(64 * 42, 64 * 43)[None]):
        assert (part.seen(query, key) == (abs(query - key) <= 100)).all()
    assert not part.seen(query, query.T).any()


def test_building_and_laying_out_hold_nothing_quadratic() -> None:
    N, size = 2**20, 64
    tracemalloc.start()
    try:
        local = BlockSparse.local_global(size, 8, 8, 1)
        list(local.parts(laid_over(Sequence(N), [N // 1000] * 1000 + [N % 1000])))
        list(
            BlockSparse.from_blocks(size, lambda i, j: abs(i - j) <= 4, N).parts(
                laid_over(Sequence(N))
            )
        )
        mask = BlockSparse.from_mask(size, lambda i, j: abs(i - j) <= 4, 8192)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 256 * 2**20
    assert len(mask.blocks.bitmaps) == 3 * 128 - 2


@pytest.mark.parametrize(
    "pattern",
    [
        BlockSparse.local(64, 1, 0),
        BlockSparse.local_global(64, 2, 2, 1, along="backwards"),
        BlockSparse.dilated_blocks(16, 3, 2),
        BlockSparse.from_blocks(8, lambda i, j: i == j, 100),
        BlockSparse.from_mask(8, lambda i, j: i <= j, 100),
    ],
)
def test_a_pattern_survives_text_and_pickling(pattern: BlockSparse) -> None:
    assert Pattern.from_literal(ast.literal_eval(pattern.text)) == pattern
    again = pickle.loads(pickle.dumps(pattern))
    assert again == pattern
    assert hash(again) == hash(pattern)
    assert torch.equal(*(expanded(same, laid_over(Sequence(100))) for same in (again, pattern)))


def test_evaluated_blocks_are_equal_where_they_show_the_same() -> None:
    first = BlockSparse.from_mask(8, lambda i, j: j <= i, 100)
    assert first == BlockSparse.from_mask(8, lambda i, j: i >= j, 100)
    assert first != BlockSparse.from_mask(8, lambda i, j: i > j, 100)
    assert first != BlockSparse.from_mask(8, lambda i, j: j <= i, 101)


@pytest.mark.parametrize(
    ("argument", "build"),
    [
        ("block_size", lambda: BlockSparse.local(0, 1, 1)),
        ("block_size", lambda: BlockSparse.from_blocks(0, lambda i, j: True, 8)),
        ("block_size", lambda: BlockSparse.from_mask(2.0, lambda i, j: True, 8)),
        ("left", lambda: BlockSparse.local(8, -1, 1)),
        ("right", lambda: BlockSparse.local_global(8, 1, 1.5, 1)),
        ("global_blocks", lambda: BlockSparse.local_global(8, 1, 1, -1)),
        ("reach", lambda: BlockSparse.dilated_blocks(8, -1, 1)),
        ("dilation", lambda: BlockSparse.dilated_blocks(8, 1, 0)),
        ("N", lambda: BlockSparse.from_blocks(8, lambda i, j: True, -1)),
        ("tokens", lambda: BlockSparse.from_mask(8, lambda i, j: True, True)),
        ("tokens", lambda: BlockSparse.from_mask(8, lambda i, j: True, 65_537)),
        ("tokens", lambda: BlockSparse.from_mask(8, lambda i, j: True, Grid(3, 3), limit=8)),
        ("predicate", lambda: BlockSparse.from_blocks(8, lambda i, j: i + j, 16)),
        ("predicate", lambda: BlockSparse.from_blocks(8, lambda i, j: [[True, False]] * 3, 16)),
        ("predicate", lambda: BlockSparse.from_mask(8, lambda i, j: None, 16)),
        ("predicate", lambda: BlockSparse.from_mask(8, lambda q, k: q == k, Grid(4, 4))),
        ("block_size", lambda: BlockSparse.local(2**70, 1, 1)),
        ("block_size", lambda: BlockSparse.from_blocks(2**53 + 1, lambda i, j: True, 8)),
        ("block_size", lambda: BlockSparse.from_mask(2**70, lambda i, j: True, 8)),
        ("left", lambda: BlockSparse.local(8, 2**70, 1)),
        ("right", lambda: BlockSparse.local(8, 1, 2**70)),
        ("global_blocks", lambda: BlockSparse.local_global(8, 1, 1, 2**70)),
        ("reach", lambda: BlockSparse.dilated_blocks(8, 2**70, 1)),
        ("dilation", lambda: BlockSparse.dilated_blocks(8, 1, 2**70)),
        ("N", lambda: BlockSparse.from_blocks(8, lambda i, j: True, 2**70)),
        ("tokens", lambda: BlockSparse.from_mask(8, lambda i, j: True, 2**70, limit=2**80)),
        ("blocks", lambda: BlockSparse(8, np.ones((2, 2)))),
        ("along", lambda: BlockSparse.local(8, 1, 1, along=3)),
        (
            "along",
            lambda: BlockSparse(
                8, BlockSparse.from_mask(8, lambda i, j: i <= j, 16).blocks, along="backwards"
            ),
        ),
        (
            "block_size",
            lambda: BlockSparse(16, BlockSparse.from_blocks(8, lambda i, j: True, 16).blocks),
        ),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_name(
    argument: str, build: Callable[[], BlockSparse]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        build()
    assert refusal.value.argument == argument


def test_a_mask_of_more_tokens_than_the_limit_is_refused_with_what_to_do() -> None:
    with pytest.raises(InvalidArgument, match=r"at most 65,536 tokens.*got 100,000.*from_blocks"):
        BlockSparse.from_mask(64, lambda i, j: True, 100_000)


@pytest.mark.parametrize(
    ("tokens", "documents"), [(Sequence(17), None), (Sequence(32), [16, 15, 1])]
)
def test_evaluated_blocks_serve_their_own_number_of_tokens_only(
    tokens: Tokens, documents: list[int] | None
) -> None:
    pattern = BlockSparse.from_blocks(8, lambda i, j: True, 16)
    with pytest.raises(InvalidArgument, match="got blocks evaluated for 16"):
        pattern.check(laid_over(tokens, documents))


SIDES = Coordinates([[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]])


def alike(query: Any, key: Any) -> Any:
    """Tokens of one column."""
    return query[-1] == key[-1]


@pytest.mark.parametrize(
    ("made_on", "tokens"),
    [
        (Grid(2, 3), Grid(3, 2)),
        (Grid(2, 3), Grid(1, 2, 3)),
        (Grid(2, 3), Coordinates(SIDES.coordinates[::-1])),
        (SIDES, Grid(3, 2)),
    ],
)
def test_a_mask_of_coordinates_is_refused_on_others_by_name(
    made_on: Tokens, tokens: Tokens
) -> None:
    pattern = BlockSparse.from_mask(4, alike, made_on)
    with pytest.raises(InvalidArgument, match="evaluated") as refusal:
        pattern.check(laid_over(tokens))
    assert refusal.value.argument == "tokens"


@pytest.mark.parametrize(
    ("made_on", "tokens", "documents"),
    [
        (Grid(2, 3), Grid(2, 3), None),
        (Grid(2, 3), SIDES, None),
        (SIDES, Grid(2, 3), None),
        (Grid(2, 3), Sequence(6), None),
        (Grid(2, 3), Sequence(12), [6, 6]),
        (Grid(2, 3), Grid(2, 2, 3), [6, 6]),
    ],
)
def test_a_mask_of_coordinates_serves_the_same_ones_and_plain_sequences(
    made_on: Tokens, tokens: Tokens, documents: list[int] | None
) -> None:
    pattern = BlockSparse.from_mask(4, alike, made_on)
    column = np.arange(tokens.N) % 3
    once = torch.from_numpy(column[:6, None] == column[:6]).long()
    expected = torch.block_diag(*[once] * (tokens.N // 6))
    for same in (pattern, pickle.loads(pickle.dumps(pattern))):
        assert torch.equal(expanded(same, laid_over(tokens, documents))[0], expected)


def test_a_mask_of_positions_serves_any_tokens() -> None:
    pattern = BlockSparse.from_mask(4, lambda i, j: i >= j, 6)
    for tokens in (Sequence(6), Grid(2, 3), SIDES):
        assert torch.equal(expanded(pattern, laid_over(tokens))[0], torch.ones(6, 6).tril().long())


@pytest.mark.parametrize(
    ("far", "near"),
    [
        (BlockSparse.local(2**53, 0, 0), BlockSparse.local(19, 0, 0)),
        (BlockSparse.local(4, 2**53, 2**53), BlockSparse.local(19, 0, 0)),
        (BlockSparse.local_global(4, 0, 0, 2**53), BlockSparse.local(19, 0, 0)),
        (BlockSparse.dilated_blocks(4, 2**53, 2**53), BlockSparse.local(4, 0, 0)),
        (
            BlockSparse.from_blocks(2**53, lambda i, j: i == j, 19),
            BlockSparse.from_blocks(19, lambda i, j: i == j, 19),
        ),
        (
            BlockSparse.from_mask(2**53, lambda i, j: (i + j) % 3 == 0, 19),
            BlockSparse.from_mask(5, lambda i, j: (i + j) % 3 == 0, 19),
        ),
    ],
)
@pytest.mark.usefixtures("toy")
def test_what_reaches_beyond_any_sequence_is_as_good_as_the_whole_of_it(
    far: BlockSparse, near: BlockSparse
) -> None:
    assert torch.equal(*(expanded(pattern, laid_over(Sequence(19))) for pattern in (far, near)))
    q, k, v = torch.randn(3, 1, 19, 2, 4).unbind()
    torch.testing.assert_close(*(rs.attention(q, k, v, pattern=pattern) for pattern in (far, near)))


BUILDERS: dict[str, Callable[[], BlockSparse]] = {
    "from_blocks": lambda: BlockSparse.from_blocks(4, lambda i, j: (i + j) % 2 == 0, 16),
    "from_mask": lambda: BlockSparse.from_mask(4, alike, Grid(4, 4)),
}


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_deep_copy_outlives_the_original(build: Callable[[], BlockSparse]) -> None:
    q, k, v = torch.randn(3, 1, 16, 2, 4).unbind()
    original = build()
    expected = rs.attention(q, k, v, pattern=original)
    copied = copy.deepcopy(original)
    del original
    gc.collect()
    assert torch.equal(rs.attention(q, k, v, pattern=copied), expected)


READER = """
import pickle, sys, ringspan as rs
pattern, q, k, v, expected = pickle.load(sys.stdin.buffer)
out = rs.attention(q, k, v, pattern=pattern, backend="toy")
assert out.equal(expected), (out - expected).abs().max()
"""


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize("build", BUILDERS.values(), ids=BUILDERS)
def test_a_pickle_is_read_by_another_process(build: Callable[[], BlockSparse]) -> None:
    q, k, v = torch.randn(3, 1, 16, 2, 4).unbind()
    pattern = build()
    expected = rs.attention(q, k, v, pattern=pattern, backend="toy")
    sent = pickle.dumps((pattern, q, k, v, expected))
    # The toy backend is found on this process's path.
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    reader = subprocess.run(
        [sys.executable, "-c", READER], input=sent, capture_output=True, env=paths
    )
    assert reader.returncode == 0, reader.stderr.decode()


def test_a_fault_of_the_predicate_itself_is_not_hidden() -> None:
    def broken(i: Any, j: Any) -> bool:
        raise ValueError("my own fault")

    with pytest.raises(ValueError, match="my own fault"):
        BlockSparse.from_blocks(8, broken, 16)


@pytest.mark.usefixtures("toy")
@settings(max_examples=60)
@given(
    rules(),
    st.one_of(lengths, st.integers(1, 60)),
    st.sampled_from(("rule", "blocks", "mask")),
    st.booleans(),
    st.sampled_from((torch.float32, torch.bfloat16)),
    st.integers(0, 2**16),
)
def test_block_sparse_attention_is_the_formula(
    rule: tuple[BlockSparse, Seen],
    lengths: list[int] | int,
    kind: str,
    causal: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    pattern, seen = rule
    size = pattern.block_size
    if isinstance(lengths, int):
        lengths = [lengths]
        if kind == "blocks":
            pattern = BlockSparse.from_blocks(size, seen, lengths[0])
        if kind == "mask":
            table = defined(size, lambda _: seen, lengths)[0].bool().numpy()
            pattern = BlockSparse.from_mask(size + 1, lambda i, j: table[i, j], lengths[0])
    assume(sum(lengths) > 0)
    m = defined(size, lambda _: seen, lengths)
    if causal:
        m = multiplicity.causal_part(m)
    make = torch.Generator().manual_seed(seed)
    q, k, v, grad_out = (
        torch.randn(2, sum(lengths), heads, 8, generator=make).to(dtype) for heads in (4, 2, 2, 4)
    )
    exact = yardstick(q, k, v, m.expand(4, -1, -1), grad_out=grad_out)
    asked = {"grad_query": q, "grad_key": k, "grad_value": v}
    for x in asked.values():
        x.requires_grad_()
    documents = rs.Documents.from_lengths(lengths)
    out, lse = rs.attention(
        q, k, v, pattern=pattern, causal=causal, documents=documents, return_lse=True
    )
    grads = torch.autograd.grad(out, list(asked.values()), grad_out)
    assert_exact({"out": out, "lse": lse, **dict(zip(asked, grads, strict=True))}, exact)


@pytest.mark.usefixtures("toy")
@pytest.mark.parametrize(
    "pattern",
    [
        BlockSparse.local_global(64, 2, 2, 1),
        BlockSparse.dilated_blocks(16, 4, 7),
        BlockSparse.from_blocks(64, lambda i, j: abs(i - j) % 64 == 0, 2**14),
        BlockSparse.from_mask(64, lambda i, j: abs(i - j) < 100, 2**14),
    ],
)
def test_nothing_quadratic_is_allocated(pattern: BlockSparse) -> None:
    N = 2**14
    q, k, v = (torch.randn(1, N, 1, 4, requires_grad=True) for _ in range(3))
    tracemalloc.start()
    try:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            out = rs.attention(q, k, v, pattern=pattern)
            torch.autograd.grad(out, (q, k, v), torch.randn_like(out))
        _, planned = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    events = profiler.profiler.kineto_results.events()
    assert max(event.nbytes() for event in events if event.name() == "[memory]") < N * N / 4
    assert planned < N * N
