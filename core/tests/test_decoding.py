"""Caches: any cut into steps and chunks equals the full causal attention, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import ringspan as rs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.contracts import Pattern
from ringspan.decoding import (
    Cache,
    DenseCache,
    DilatedCache,
    WindowCache,
    generate,
    make_cache,
    make_caches,
    stream,
)
from ringspan.errors import InvalidArgument, NotYetSupported, RingspanError
from ringspan.nn import LongNet, SelfAttention
from ringspan.patterns import BlockSparse, Consecutive, HeadGroups, Neighborhood
from ringspan.testing import assert_exact, multiplicity, yardstick
from torch import Tensor, nn

pytestmark = [
    pytest.mark.usefixtures("toy"),
    # What patterns warn of is tested with them.
    pytest.mark.filterwarnings("ignore:head_offsets='query'"),
    pytest.mark.filterwarnings("ignore:torchscale moves"),
]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Sequences:
    """Tensors of one problem, and the sizes of its cache."""

    query: Tensor
    key: Tensor
    value: Tensor
    sink: Tensor | None

    @property
    def N(self) -> int:
        return self.query.shape[1]

    def cache(self, pattern: Pattern) -> Cache:
        return make_cache(
            pattern,
            batch=self.query.shape[0],
            heads=self.query.shape[2],
            kv_heads=self.key.shape[2],
            head_dim=self.query.shape[3],
            value_head_dim=self.value.shape[3],
            dtype=self.query.dtype,
        )

    def chunk(self, start: int, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (
            x[:, start : start + tokens] for x in (self.query, self.key, self.value)
        )
        return query, key, value

    def attended(self, cache: Cache, chunks: list[int]) -> Tensor:
        """All tokens through the cache, so many at a time, over and over."""
        outs = []
        while cache.length < self.N:
            tokens = min(chunks[len(outs) % len(chunks)], self.N - cache.length)
            outs.append(cache.attend(*self.chunk(cache.length, tokens), sink=self.sink))
        return torch.cat(outs, dim=1)

    def assert_exact(self, out: Tensor, m: Tensor) -> None:
        exact = yardstick(self.query, self.key, self.value, m, sink=self.sink)
        assert_exact({"out": out}, exact)


@st.composite
def sequences(draw: st.DrawFn, max_N: int = 70) -> Sequences:
    """Any batch and grouping of heads, with or without a sink, some of it with huge scores."""
    N, batch = draw(st.integers(1, max_N)), draw(st.sampled_from((1, 2, 3, 0)))
    kv_heads, group = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    head_dim, value_head_dim = (draw(st.sampled_from((8, 4, 1))) for _ in range(2))
    dtype, scores = draw(st.sampled_from(DTYPES)), draw(st.sampled_from((1.0, 1.0, 50.0)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    return Sequences(
        normal(batch, N, kv_heads * group, head_dim) * scores,
        normal(batch, N, kv_heads, head_dim),
        normal(batch, N, kv_heads, value_head_dim),
        normal(kv_heads * group) if draw(st.booleans()) else None,
    )


@st.composite
def dilated(draw: st.DrawFn, heads: int, longest: int = 50, largest: int = 7) -> rs.Dilated:
    """Any branches, with any rule of offsets or integers."""
    lengths = draw(st.lists(st.integers(1, longest), min_size=1, max_size=3))
    rates = [draw(st.integers(1, min(w, largest))) for w in lengths]
    integers = st.tuples(*[st.integers(0, largest)] * heads)
    offsets = draw(
        st.one_of(
            st.sampled_from(("modulo", "query", "blocked")),
            integers,
            st.tuples(*[integers] * len(lengths)),
        )
    )
    return rs.Dilated(tuple(lengths), tuple(rates), head_offsets=offsets)


cuts = st.lists(st.one_of(st.just(1), st.integers(1, 30)), min_size=1, max_size=6)


@given(st.data(), sequences(), cuts)
def test_any_cut_of_a_dilated_sequence_equals_the_full_causal_attention(
    data: st.DataObject, given: Sequences, chunks: list[int]
) -> None:
    heads, kv_heads = given.query.shape[2], given.key.shape[2]
    pattern = data.draw(dilated(heads))
    m = multiplicity.dilated(
        given.N,
        heads,
        kv_heads,
        pattern.segment_lengths,
        pattern.dilation_rates,
        pattern.head_offsets,
        causal=True,
    )
    given.assert_exact(given.attended(given.cache(pattern), chunks), m)


@given(sequences(), cuts, st.none() | st.integers(0, 30), st.none() | st.integers(0, 3))
def test_any_cut_of_a_window_equals_the_full_causal_attention(
    given: Sequences, chunks: list[int], left: int | None, right: int | None
) -> None:
    cache = given.cache(rs.Dense(window=(left, right)))
    assert type(cache) is (DenseCache if left is None else WindowCache)
    m = multiplicity.dense(given.N, causal=True, window=(left, right))
    given.assert_exact(given.attended(cache, chunks), m)


@given(sequences(), cuts, st.integers(1, 9), st.integers(1, 4), st.booleans())
def test_any_cut_of_a_neighborhood_equals_the_full_causal_attention(
    given: Sequences, chunks: list[int], window: int, dilation: int, causal_axis: bool
) -> None:
    pattern = Neighborhood(window, dilation, causal_axes=(0,) if causal_axis else ())
    cache = given.cache(pattern)
    assert type(cache) is WindowCache
    m = multiplicity.neighborhood(
        torch.arange(given.N)[:, None],
        [window],
        [dilation],
        [1],
        causal_axes=pattern.causal_axes,
    )
    given.assert_exact(given.attended(cache, chunks), multiplicity.causal_part(m))


@given(sequences(), cuts)
def test_any_cut_of_torchscales_pattern_equals_the_full_causal_attention(
    given: Sequences, chunks: list[int]
) -> None:
    heads, kv_heads = given.query.shape[2], given.key.shape[2]
    branches = (4, 12, 5), (2, 3, 7)
    m = multiplicity.dilated(given.N, heads, kv_heads, *branches, "blocked", causal=True)
    cache = given.cache(rs.Dilated.torchscale(*branches))
    given.assert_exact(given.attended(cache, chunks), m)


PATTERNS = (rs.Dilated((8, 32), (1, 4)), rs.Dense(), rs.Dense(window=(5, 0)))


def some(N: int = 40, dtype: torch.dtype = torch.float32) -> Sequences:
    """Two sequences, four query heads, two key/value heads."""
    query, key, value = (torch.randn(2, N, heads, 8).to(dtype) for heads in (4, 2, 2))
    return Sequences(query, key, value, torch.randn(4))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_whole_prompt_at_once_is_the_full_forward_bit_for_bit(pattern: Pattern) -> None:
    given = some()
    whole = rs.attention(
        given.query, given.key, given.value, pattern=pattern, causal=True, sink=given.sink
    )
    assert isinstance(whole, Tensor)
    assert torch.equal(given.attended(given.cache(pattern), [40]), whole)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_appended_tokens_are_seen_like_attended_ones(pattern: Pattern) -> None:
    given = some()
    appended, attended = given.cache(pattern), given.cache(pattern)
    appended.append(given.key[:, :30], given.value[:, :30])
    attended.attend(*given.chunk(0, 30))
    assert appended.length == attended.length == 30
    first, second = (cache.attend(*given.chunk(30, 1)) for cache in (appended, attended))
    assert torch.equal(first, second)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_a_reset_cache_remembers_nothing(pattern: Pattern) -> None:
    given = some()
    cache = given.cache(pattern)
    first = given.attended(cache, [1, 7])
    cache.reset()
    assert cache.length == 0
    assert set(cache.rows_per_head) == {0}
    assert torch.equal(given.attended(cache, [1, 7]), first)


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_the_scale_is_the_callers(pattern: Pattern) -> None:
    given = some(dtype=torch.float64)
    half = replace(given, query=given.query / 2)
    for tokens in (1, 7):
        scaled, plain = given.cache(pattern), half.cache(pattern)
        scaled.append(given.key[:, :20], given.value[:, :20])
        plain.append(given.key[:, :20], given.value[:, :20])
        out = scaled.attend(*given.chunk(20, tokens), scale=8**-0.5 / 2)
        torch.testing.assert_close(out, plain.attend(*half.chunk(20, tokens)))


def test_non_contiguous_tensors_are_taken() -> None:
    given = some()
    spread = replace(
        given,
        query=given.query.transpose(1, 2).contiguous().transpose(1, 2),
        key=torch.stack([given.key] * 2, dim=-1)[..., 0],
    )
    first, second = (x.attended(x.cache(PATTERNS[0]), [1, 9]) for x in (given, spread))
    torch.testing.assert_close(first, second)


def test_a_poisoned_buffer_never_reaches_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **how: empty(*size, **how).fill_(torch.nan))
    given = some()
    for pattern in PATTERNS:
        assert given.attended(given.cache(pattern), [1, 6]).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("elements", [1, 100, 1000])
def test_history_that_is_widened_in_blocks_is_exact(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, elements: int
) -> None:
    monkeypatch.setattr("ringspan.decoding.step._IN_CACHE", elements)
    given = some(dtype=dtype)
    out = given.attended(given.cache(rs.Dense()), [1])
    given.assert_exact(out, multiplicity.dense(given.N, causal=True))


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("chunks", [[1], [7, 1]], ids=repr)
def test_autocast_changes_neither_the_dtype_nor_the_result(
    pattern: Pattern, dtype: torch.dtype, chunks: list[int]
) -> None:
    given = some(dtype=dtype)
    cache, plain = given.cache(pattern), given.cache(pattern)
    for tokens in chunks * 5:
        chunk = given.chunk(cache.length, tokens)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = cache.attend(*chunk, sink=given.sink)
        assert out.dtype is dtype
        assert torch.equal(out, plain.attend(*chunk, sink=given.sink))


# How much is held


@settings(max_examples=25)
@given(st.data(), st.integers(1, 2**20), st.sampled_from(((2, 2), (4, 2), (3, 3))))
def test_up_to_a_million_tokens_the_rows_are_those_that_can_be_seen(
    data: st.DataObject, position: int, heads: tuple[int, int]
) -> None:
    pattern = data.draw(dilated(heads[0], longest=50_000, largest=32))
    cache = make_cache(pattern, batch=1, heads=heads[0], kv_heads=heads[1], head_dim=1)
    limit = cache.row_limit
    assert limit is not None
    # A row tells where it comes from, and tokens may come in any number at once.
    rows = torch.arange(position, dtype=torch.float32)[None, :, None, None]
    for key in rows.expand(1, -1, heads[1], 1).split(data.draw(st.integers(10_000, 2**20)), 1):
        cache.append(key, key)
    expected = [0] * heads[1]
    branches = zip(pattern.segment_lengths, pattern.dilation_rates, strict=True)
    for branch, (w, r) in enumerate(branches):
        rule = pattern.head_offsets
        rule = rule if isinstance(rule, str) else rule[branch]
        kept = {
            (h * heads[1] // heads[0], multiplicity.head_offset(rule, h, *heads, r))
            for h in range(heads[0])
        }
        for kv_head, offset in kept:
            expected[kv_head] += len(range(offset, position % w, r)) if offset < r else 0
    assert cache.length == position
    assert cache.rows_per_head == tuple(expected)
    assert all(row <= most for row, most in zip(cache.rows_per_head, limit, strict=True))
    assert cache.nbytes <= 2 * 4 * sum(limit)


@settings(max_examples=25)
@given(st.data(), st.integers(1, 2**20), st.sampled_from((1, 5)), st.sampled_from(DTYPES))
def test_near_a_million_tokens_steps_and_chunks_are_still_exact(
    data: st.DataObject, position: int, tokens: int, dtype: torch.dtype
) -> None:
    heads, kv_heads, longest = 4, 2, 4096
    pattern = data.draw(dilated(heads, longest=longest))
    # No token sees further back than its own segment.
    before = min(position, longest)
    query, key, value = (
        torch.randn(1, before + tokens, h, 4).to(dtype) for h in (heads, kv_heads, kv_heads)
    )
    cache = make_cache(pattern, batch=1, heads=heads, kv_heads=kv_heads, head_dim=4, dtype=dtype)
    far = torch.randn(1, 1, kv_heads, 4).to(dtype).expand(1, position - before, -1, -1)
    if far.shape[1]:
        cache.append(far, far)
    cache.append(key[:, :before], value[:, :before])
    out = cache.attend(query[:, before:], key[:, before:], value[:, before:])
    i = torch.arange(position, position + tokens)[:, None]
    j = torch.arange(position - before, position + tokens)
    m = torch.zeros(heads, tokens, len(j), dtype=torch.int64)
    branches = zip(pattern.segment_lengths, pattern.dilation_rates, strict=True)
    for branch, (w, r) in enumerate(branches):
        rule = pattern.head_offsets
        rule = rule if isinstance(rule, str) else rule[branch]
        for h in range(heads):
            o = multiplicity.head_offset(rule, h, heads, kv_heads, r)
            m[h] += (i // w == j // w) & (i % w % r == o) & (j % w % r == o) & (j <= i)
    assert_exact({"out": out}, yardstick(query[:, before:], key, value, m))


def test_a_dilated_cache_never_holds_more_than_its_segments() -> None:
    lengths, rates = (8, 32, 50), (1, 4, 7)
    cache = make_cache(rs.Dilated(lengths, rates), batch=1, heads=9, head_dim=1)
    bound = sum(-(-w // r) for w, r in zip(lengths, rates, strict=True))
    token = torch.zeros(1, 1, 9, 1)
    for _ in range(400):
        cache.attend(token, token, token)
        assert max(cache.rows_per_head) <= bound
    assert max(cache.row_limit or ()) == bound


def test_query_offsets_hold_a_segment_for_each_offset_in_a_group() -> None:
    pattern = rs.Dilated((12,), (3,), head_offsets="query")
    cache = make_cache(pattern, batch=1, heads=4, kv_heads=2, head_dim=1)
    # Query heads 0 1 | 2 3 stand on the offsets 0 1 | 2 0.
    assert cache.row_limit == (8, 8)
    alike = replace(pattern, head_offsets=(1, 1, 5, 2))
    # The third head takes no part.
    assert make_cache(alike, batch=1, heads=4, kv_heads=2, head_dim=1).row_limit == (4, 4)


def test_a_window_cache_is_a_ring_of_its_window() -> None:
    given = some(400)
    cache = given.cache(rs.Dense(window=(15, 0)))
    nbytes = cache.nbytes
    given.attended(cache, [1, 40])
    assert cache.rows_per_head == cache.row_limit == (16, 16)
    assert cache.nbytes == nbytes == 16 * 2 * 2 * (8 + 8) * 4


HUGE = (
    rs.Dense(window=(10**8, 0)),
    rs.Dense(window=(2**53, 0)),
    Neighborhood(2**31 - 1, 2**31 - 1),
    rs.Dilated((2**53, 10**9), (1, 7)),
)


@pytest.mark.parametrize("pattern", HUGE, ids=repr)
def test_room_is_made_for_what_has_come_not_for_all_that_may_be_seen(pattern: Pattern) -> None:
    given = some(700)
    cache = given.cache(pattern)
    for tokens in (1, 300, 398, 1):
        cache.attend(*given.chunk(cache.length, tokens))
        # Doubled at most, from a first room of 256 rows; in two branches.
        assert cache.nbytes <= 2 * max(256, 2 * cache.length) * 2 * 2 * (8 + 8) * 4


GROWN = (
    (rs.Dense(window=(20, 0)), multiplicity.dense(60, causal=True, window=(20, 0))),
    (
        Neighborhood(8, 3, causal_axes=(0,)),
        multiplicity.causal_part(
            multiplicity.neighborhood(torch.arange(60)[:, None], [8], [3], [1], causal_axes=(0,))
        ),
    ),
    (
        rs.Dilated((25, 60), (1, 3)),
        multiplicity.dilated(60, 4, 2, (25, 60), (1, 3), "modulo", causal=True),
    ),
)


@pytest.mark.parametrize(("pattern", "m"), GROWN, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("chunks", [[1], [7, 1], [1, 40], [45, 1]], ids=repr)
def test_buffers_that_grow_lose_nothing_and_never_pass_the_limit(
    monkeypatch: pytest.MonkeyPatch, pattern: Pattern, m: Tensor, chunks: list[int]
) -> None:
    monkeypatch.setattr("ringspan.decoding.buffers._FIRST_ROWS", 2)
    given = some(60)
    cache = given.cache(pattern)
    given.assert_exact(given.attended(cache, chunks), m)
    assert cache.row_limit is not None
    assert cache.nbytes <= sum(cache.row_limit) * 2 * (8 + 8) * 4


def test_a_dense_cache_holds_every_row_and_at_most_doubles() -> None:
    given = some(1100)
    cache = given.cache(rs.Dense())
    given.attended(cache, [397, 1])
    assert cache.rows_per_head == (1100, 1100)
    assert cache.row_limit is None
    assert cache.nbytes <= 2 * 1100 * 2 * 2 * (8 + 8) * 4


# What is refused


@pytest.mark.parametrize(
    ("change", "argument", "words"),
    [
        ({"query": torch.randn(3, 1, 4, 8)}, "q", "batch 2"),
        ({"key": torch.randn(3, 1, 2, 8)}, "k", "batch 2"),
        ({"value": torch.randn(2, 1, 4, 8)}, "v", "2 key/value heads"),
        ({"query": torch.randn(2, 1, 2, 8)}, "q", "4 query"),
        ({"query": torch.randn(2, 2, 4, 8)}, "q", "[2, 1, 4, 8]"),
        ({"value": torch.randn(2, 2, 2, 8)}, "v", "[2, 1, 2, 8]"),
        ({"key": torch.randn(2, 1, 2, 9)}, "k", "[2, 1, 2, 8]"),
        ({"key": torch.randn(2, 0, 2, 8)}, "k", "at least one token"),
        ({"key": "rows"}, "k", "got str"),
        ({"query": torch.randn(2, 1, 4, 8).bfloat16()}, "q.dtype", "float32, as the cache"),
        ({"value": torch.randn(2, 1, 2, 8, device="meta")}, "v.device", "cpu, as the cache"),
        ({"sink": torch.randn(3)}, "sink", "[4]"),
        ({"sink": torch.randn(4, device="meta")}, "sink.device", "cpu, as the cache"),
        ({"scale": float("nan")}, "scale", "finite"),
        ({"query": torch.randn(2, 1, 4, 8).requires_grad_()}, "q", "torch.no_grad()"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda pattern: type(pattern).__name__)
def test_what_the_cache_was_not_made_for_is_refused_and_changes_nothing(
    pattern: Pattern, change: dict[str, Any], argument: str, words: str
) -> None:
    given = some()
    cache, untouched = given.cache(pattern), given.cache(pattern)
    for each in (cache, untouched):
        each.append(given.key[:, :9], given.value[:, :9])
    named = dict(zip(("query", "key", "value"), given.chunk(9, 1), strict=True))
    with pytest.raises(RingspanError) as refused:
        cache.attend(**{**named, **change})
    assert refused.value.argument == argument
    assert words in str(refused.value)
    assert cache.length == 9
    first, second = (each.attend(**named) for each in (cache, untouched))
    assert torch.equal(first, second)


def test_a_cache_for_another_pattern_is_refused_by_the_layer() -> None:
    layer = SelfAttention(32, 4, PATTERNS[0], kv_heads=2)
    with pytest.raises(InvalidArgument, match="cache"):
        layer(torch.randn(2, 1, 32), cache=some().cache(PATTERNS[1]))


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (rs.Dilated((4,), (2,), along="hilbert"), "along=None"),
        (rs.Dense(window=(4, 0), along="hilbert"), "along=None"),
        (Neighborhood(3, edges="shift"), "edges='clip'"),
        (Neighborhood(3, stride=2), "stride=1"),
        (Neighborhood((3, 3)), "one dimension"),
        (HeadGroups((4,), (2,)), "Dense, Dilated or a one-dimensional Neighborhood"),
        (Consecutive((4,), (2,)), "Dense, Dilated or a one-dimensional Neighborhood"),
        (BlockSparse.local(4, 1, 1), "Dense, Dilated or a one-dimensional Neighborhood"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Pattern) else "",
)
def test_a_pattern_that_no_cache_serves_is_refused_by_name(pattern: Pattern, words: str) -> None:
    with pytest.raises(NotYetSupported) as refused:
        make_cache(pattern, batch=1, heads=2, head_dim=4)
    assert refused.value.argument == "pattern"
    assert words in str(refused.value)
    assert type(pattern).__name__ in str(refused.value)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"batch": -1}, "batch"),
        ({"heads": 0}, "heads"),
        ({"kv_heads": 3}, "kv_heads"),
        ({"head_dim": True}, "head_dim"),
        ({"value_head_dim": 0}, "value_head_dim"),
        ({"dtype": torch.int32}, "dtype"),
        ({"pattern": "dense"}, "pattern"),
        ({"pattern": rs.Dilated((4,), (2,), head_offsets=(0, 1, 0))}, "head_offsets"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_sizes_that_make_no_cache_are_refused(options: dict[str, Any], argument: str) -> None:
    fitting: dict[str, Any] = {"pattern": rs.Dense(), "batch": 1, "heads": 4, "head_dim": 8}
    given = {**fitting, **options}
    with pytest.raises(InvalidArgument) as refused:
        make_cache(given.pop("pattern"), **given)
    assert refused.value.argument == argument


def test_a_cache_made_in_inference_mode_serves_outside_of_it() -> None:
    given = some()
    for pattern in PATTERNS:
        with torch.inference_mode():
            cache = given.cache(pattern)
            cache.attend(*given.chunk(0, 5))
        cache.attend(*given.chunk(5, 1))
        assert cache.length == 6


# A model over caches


def awake(model: LongNet) -> LongNet:
    """With blocks that do something: new ones are silent."""
    for attention, block in zip(model.attentions, model.blocks, strict=True):
        nn.init.normal_(attention.out_proj.weight, std=0.3)
        nn.init.normal_(block.perceptron[-1].weight, std=0.3)  # type: ignore[union-attr, index]
    return model


def language_model(dtype: torch.dtype = torch.float64) -> LongNet:
    patterns = [rs.Dilated((4, 12), (1, 3)), rs.Dense(window=(5, 0)), rs.Dense()]
    return awake(LongNet(17, 16, 3, 4, patterns, kv_heads=2, sink=True, dtype=dtype))


PROMPT = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def test_a_model_over_caches_gives_the_logits_of_the_whole_sequence() -> None:
    model, tokens = language_model(), torch.randint(17, (2, 40))
    caches = make_caches(model, batch=2)
    assert [type(cache) for cache in caches] == [DilatedCache, WindowCache, DenseCache]
    with torch.no_grad():
        logits = [model(chunk, caches=caches) for chunk in tokens.split((1, 9, 1, 20, 1, 8), 1)]
        torch.testing.assert_close(torch.cat(logits, dim=1), model(tokens))


def test_generation_takes_the_likeliest_token_of_the_full_forward() -> None:
    model = language_model()
    tokens = generate(model, PROMPT, max_new_tokens=30)
    assert torch.equal(tokens[:, :5], PROMPT)
    with torch.no_grad():
        assert torch.equal(tokens[:, 5:], model(tokens)[:, 4:-1].argmax(-1))


def test_a_seed_decides_what_is_drawn() -> None:
    model = language_model()
    options: dict[str, Any] = {"max_new_tokens": 30, "temperature": 1.0}
    first, again, other = (generate(model, PROMPT, seed=s, **options) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(5)
    unseeded = generate(model, PROMPT, **options)
    torch.manual_seed(5)
    assert torch.equal(generate(model, PROMPT, **options), unseeded)


@pytest.mark.parametrize("options", [{"top_k": 1, "temperature": 1.0}, {"temperature": 1e-300}])
def test_sampling_with_nothing_to_choose_is_greedy(options: dict[str, Any]) -> None:
    model = language_model()
    greedy = generate(model, PROMPT, max_new_tokens=10)
    assert torch.equal(generate(model, PROMPT, max_new_tokens=10, **options), greedy)


def test_only_the_likeliest_few_are_drawn() -> None:
    model = language_model()
    tokens = generate(model, PROMPT, max_new_tokens=40, temperature=5.0, top_k=3, seed=0)
    with torch.no_grad():
        best = model(tokens)[:, 4:-1].topk(3).indices
    drawn = tokens[:, 5:, None] == best
    assert drawn.any(-1).all()
    assert drawn.flatten(0, 1).any(0).all()


def test_draws_follow_the_softmax_of_the_logits_over_the_temperature() -> None:
    model = language_model()
    prompt = PROMPT[:1].expand(20_000, -1)
    drawn = generate(model, prompt, max_new_tokens=1, temperature=2.0, seed=0)[:, -1]
    with torch.no_grad():
        shares = (model(PROMPT[:1])[0, -1] / 2).softmax(-1)
    expected = shares * len(drawn)
    counts = torch.bincount(drawn, minlength=17)
    # Pearson's statistic of 16 degrees of freedom is above 50 once in 50,000 times.
    assert ((counts - expected) ** 2 / expected).sum() < 50


def test_a_stream_computes_no_more_than_it_is_asked_for() -> None:
    model = language_model()
    caches = make_caches(model, batch=2)
    tokens = stream(model, PROMPT, max_new_tokens=100, caches=caches)
    assert caches[0].length == 0
    first = [next(tokens) for _ in range(3)]
    assert [cache.length for cache in caches] == [7, 7, 7]
    assert torch.is_grad_enabled()
    whole = generate(model, PROMPT, max_new_tokens=3)
    assert torch.equal(torch.stack(first, dim=1), whole[:, 5:])


def test_caches_go_on_where_a_stream_ended() -> None:
    model = language_model()
    caches = make_caches(model, batch=2)
    first = torch.stack(list(stream(model, PROMPT, max_new_tokens=4, caches=caches)), dim=1)
    second = torch.stack(list(stream(model, first[:, -1:], max_new_tokens=4, caches=caches)), dim=1)
    whole = generate(model, PROMPT, max_new_tokens=8)
    assert torch.equal(torch.cat([first, second], dim=1), whole[:, 5:])


def test_under_autocast_caches_have_its_dtype() -> None:
    model = language_model(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert {cache.sizes.dtype for cache in make_caches(model, batch=1)} == {torch.bfloat16}
        assert generate(model, PROMPT, max_new_tokens=3).shape == (2, 8)


def test_a_prompt_of_small_integers_keeps_its_dtype() -> None:
    tokens = generate(language_model(), PROMPT.int(), max_new_tokens=2)
    assert tokens.dtype == torch.int32
    assert generate(language_model(), PROMPT, max_new_tokens=0).shape == (2, 5)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"prompt": "def "}, "prompt"),
        ({"prompt": PROMPT[0]}, "prompt"),
        ({"prompt": PROMPT[:, :0]}, "prompt"),
        ({"prompt": PROMPT.float()}, "prompt"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": None}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"seed": 0.5}, "seed"),
        ({"model": "gpt"}, "model"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arguments_of_a_stream_are_refused_before_it_is_asked(
    options: dict[str, Any], argument: str
) -> None:
    given: dict[str, Any] = {"model": language_model(), "prompt": PROMPT, "max_new_tokens": 2}
    given |= options
    with pytest.raises(InvalidArgument) as refused:
        stream(given.pop("model"), given.pop("prompt"), **given)
    assert refused.value.argument == argument


def test_dropout_while_training_is_refused() -> None:
    model = LongNet(17, 16, 1, 4, rs.Dense(), dropout_p=0.5)
    with pytest.raises(InvalidArgument, match="eval"):
        generate(model, PROMPT, max_new_tokens=1)
