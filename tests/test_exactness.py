"""Every pattern in every mode gives the formula's numbers, by the one rule of accuracy."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import ringspan as rs
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from ringspan.contracts import Coordinates, Tokens
from ringspan.plan.orders import order
from ringspan.testing import assert_exact, yardstick
from ringspan.testing.case import STRIDES, Case
from ringspan.testing.multiplicity import dilated
from ringspan.testing.named import Named, Periodic
from ringspan.testing.strategies import DTYPES, KINDS, Configuration, cases, configurations

from tests.front_door import BACKENDS, computed, computed_alone, exact, poisoned

backends = st.sampled_from(BACKENDS)
BLOCKS = [kind for kind in KINDS if kind.startswith("BlockSparse")]

CURVES = ("hilbert", "gilbert", "morton", "snake", "tiles")


def check(case: Case, backend: str, fresh: bool = False) -> None:
    with nullcontext() if fresh else poisoned():
        actual = computed(case, backend)
    assert_exact(actual, exact(case))


# Together 3,000 configurations, of which hypothesis may draw some twice, in parts that can run
# side by side.


@settings(max_examples=600)
@given(cases(kinds=["Dense"], max_N=200), backends, st.booleans())
def test_dense_attention_is_exact_in_every_mode(case: Case, backend: str, fresh: bool) -> None:
    check(case, backend, fresh)


@settings(max_examples=600)
@given(cases(kinds=["Dilated", "Dilated.torchscale"], max_N=200), backends, st.booleans())
def test_dilated_attention_is_exact_in_every_mode(case: Case, backend: str, fresh: bool) -> None:
    check(case, backend, fresh)


@settings(max_examples=600)
@given(cases(kinds=["HeadGroups", "Consecutive"], max_N=160), backends, st.booleans())
def test_head_groups_and_consecutive_segments_are_exact_in_every_mode(
    case: Case, backend: str, fresh: bool
) -> None:
    check(case, backend, fresh)


@settings(max_examples=600)
@given(cases(kinds=["Neighborhood"], max_N=160), backends, st.booleans())
def test_neighbourhoods_are_exact_in_every_mode(case: Case, backend: str, fresh: bool) -> None:
    check(case, backend, fresh)


@settings(max_examples=600)
@given(cases(kinds=BLOCKS, max_N=160), backends, st.booleans())
def test_blocks_are_exact_in_every_mode(case: Case, backend: str, fresh: bool) -> None:
    check(case, backend, fresh)


@settings(max_examples=150)
@given(cases(max_N=100), st.data(), backends)
def test_packed_documents_are_each_document_alone(
    case: Case, data: st.DataObject, backend: str
) -> None:
    if case.documents is None:
        # Points may span less than the grid that the window was drawn for.
        assume(case.pattern.fields.get("edges") != "shift")
        case = replace(case, documents=(case.N,), gaps=bool(case.grid), positions=None, cross=None)
    if case.pattern.kind == "BlockSparse.from_mask" and case.grid:
        case = replace(case, pattern=Named("Dense"))
    case = replace(case, stored=None)
    formula = exact(case)
    assert_exact(computed(case, backend), formula)
    assert_exact(computed_alone(case, backend), formula)


# What has broken others, by name.

SEGMENTS = Named("Dilated", {"segment_lengths": (50, 96), "dilation_rates": (7, 4)})
EVERY_PATTERN = [
    Named("Dense"),
    Named("Dense", {"window": (9, 4)}),
    SEGMENTS,
    Named("Dilated.torchscale", {"segment_lengths": (50, 1000), "dilation_rates": (3, 4)}),
    Named("HeadGroups", {"segment_lengths": (50,), "dilation_rates": (7,)}),
    Named("Consecutive", {"segment_lengths": (50, 11), "dilation_rates": (7, 2)}),
    Named("Neighborhood", {"window": 7, "dilation": 2, "stride": 3}),
    Named("Neighborhood", {"window": 1, "edges": "shift"}),
    Named("BlockSparse.local", {"block_size": 13, "left": 1, "right": 0}),
    Named("BlockSparse.local_global", {"block_size": 9, "left": 0, "right": 1, "global_blocks": 1}),
    Named("BlockSparse.dilated_blocks", {"block_size": 8, "reach": 1, "dilation": 3}),
]


def named(pattern: Named) -> str:
    return pattern.kind + "".join(f",{name}" for name in pattern.fields if name == "window")


def may_be_causal(pattern: Named) -> bool:
    return pattern.fields.get("edges") != "shift"


every_pattern = pytest.mark.parametrize("pattern", EVERY_PATTERN, ids=named)
every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def typical(pattern: Named, **changes: Any) -> Case:
    fields = {"N": 70, "heads": 6, "kv_heads": 3, "head_dim": 8, "value_head_dim": 8} | changes
    return Case(pattern=pattern, **{"causal": may_be_causal(pattern), **fields})


@every_backend
@every_pattern
@pytest.mark.parametrize("N", [64, 192, 320])
def test_lengths_of_64_modulo_128(pattern: Named, backend: str, N: int) -> None:
    check(typical(pattern, N=N, kv_heads=1, heads=2), backend)


@every_backend
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("kind", ["Dilated", "Dilated.torchscale", "Consecutive", "HeadGroups"])
def test_segments_longer_than_the_sequence(kind: str, causal: bool, backend: str) -> None:
    fields = {"segment_lengths": (1000, 71), "dilation_rates": (1, 3)}
    check(typical(Named(kind, fields), causal=causal), backend)


@every_backend
@pytest.mark.parametrize("kind", ["Dilated", "Dilated.torchscale", "Consecutive", "HeadGroups"])
@pytest.mark.parametrize("rate", [3, 7, 64])
def test_rates_that_do_not_divide_the_segment(kind: str, rate: int, backend: str) -> None:
    fields = {"segment_lengths": (64,), "dilation_rates": (rate,)}
    check(typical(Named(kind, fields), N=200), backend)


@every_backend
@pytest.mark.parametrize("head_offsets", ["modulo", "query", "blocked", (0, 5, 1, 3, 2, 4)])
@pytest.mark.parametrize("rates", [(4, 5), (16, 7)])
def test_heads_that_the_rate_does_not_divide_and_fewer_than_it(
    head_offsets: Any, rates: tuple[int, int], backend: str
) -> None:
    fields = {"segment_lengths": (32, 70), "dilation_rates": rates, "head_offsets": head_offsets}
    check(typical(Named("Dilated", fields)), backend)


@every_backend
@every_pattern
@pytest.mark.parametrize("kv_heads", [1, 2])
def test_grouped_heads(pattern: Named, kv_heads: int, backend: str) -> None:
    check(typical(pattern, heads=6, kv_heads=kv_heads, sink=1.0), backend)


@every_backend
@every_pattern
@pytest.mark.parametrize(("head_dim", "value_head_dim"), [(8, 5), (3, 16), (1, 1)])
def test_values_of_another_dimension(
    pattern: Named, head_dim: int, value_head_dim: int, backend: str
) -> None:
    check(typical(pattern, head_dim=head_dim, value_head_dim=value_head_dim), backend)


LENGTHS = {"segment_lengths": (8, 32), "dilation_rates": (4, 8)}
HALF = {"block_size": 7, "predicate": Periodic(("0010", "0000"))}
WITHOUT_KEYS = {
    # In both branches -inf meets -inf on the same rows when they merge.
    "branches": Named("Dilated", {**LENGTHS, "head_offsets": ((1,) * 6, (5,) * 6)}),
    "heads": Named("Dilated", {**LENGTHS, "head_offsets": (0, 1, 5, 9, 9, 1)}),
    "blocks": Named("BlockSparse.from_blocks", {**HALF, "N": 70}),
    "elements": Named("BlockSparse.from_mask", {**HALF, "tokens": 70}),
}


@every_backend
@every_dtype
@pytest.mark.parametrize("what", WITHOUT_KEYS)
def test_rows_without_keys_and_merges_of_nothing_with_nothing(
    what: str, dtype: torch.dtype, backend: str
) -> None:
    case = typical(WITHOUT_KEYS[what], causal=False, dtype=dtype)
    assert (case.multiplicity().sum(-1) == 0).any()
    check(case, backend)
    check(replace(case, sink=2.0), backend)


@every_backend
@every_pattern
def test_all_keys_padded_in_one_sequence_of_the_batch(pattern: Named, backend: str) -> None:
    if pattern.kind == "Dilated.torchscale":
        pytest.skip("refused by name: its segments depend on the length of each row of the batch")
    check(typical(pattern, padding="all", batch=2, sink=1.0), backend)
    check(typical(pattern, padding="scattered", batch=3), backend)


@every_backend
@every_dtype
@every_pattern
def test_scores_of_magnitude_ten_thousand(pattern: Named, dtype: torch.dtype, backend: str) -> None:
    check(typical(pattern, largest_score=1e4, head_dim=16, dtype=dtype, seed=3), backend)


@every_backend
@pytest.mark.parametrize("sink", [-1e4, 1e4])
def test_a_sink_far_from_all_scores(sink: float, backend: str) -> None:
    check(typical(SEGMENTS, sink=sink), backend)


@every_backend
@every_pattern
@pytest.mark.parametrize("strides", STRIDES[1:])
def test_inputs_that_are_not_contiguous(pattern: Named, strides: str, backend: str) -> None:
    check(typical(pattern, strides=strides, batch=2), backend)


@every_backend
@every_pattern
def test_a_batch_of_none(pattern: Named, backend: str) -> None:
    check(typical(pattern, batch=0, sink=1.0), backend)


@every_backend
@every_pattern
@pytest.mark.parametrize("causal", [False, True])
def test_one_token(pattern: Named, causal: bool, backend: str) -> None:
    check(typical(pattern, N=1, causal=causal and may_be_causal(pattern)), backend)


LONGER = {"segment_lengths", "window", "block_size"}


@every_pattern
def test_sequences_of_more_rows_than_any_tile_or_chunk(pattern: Named) -> None:
    fields = {
        name: tuple(16 * n for n in value) if isinstance(value, tuple) else 16 * value
        for name, value in pattern.fields.items()
        if name in LONGER
    }
    pattern = Named(pattern.kind, {**pattern.fields, **fields})
    case = typical(pattern, N=1100, heads=2, kv_heads=1, sink=1.0)
    formula = exact(case)
    for backend in BACKENDS:
        assert_exact(computed(case, backend), formula)


@every_pattern
@pytest.mark.parametrize("causal", [False, True])
def test_numerical_derivatives_agree(pattern: Named, causal: bool) -> None:
    # The patterns are laid over 12 tokens, with lengths to match.
    small = {"segment_lengths": (5, 12), "dilation_rates": (2, 3), "block_size": 3, "window": 3}
    changed = {name: small.get(name, value) for name, value in pattern.fields.items()}
    if pattern.kind == "HeadGroups":
        changed |= {"segment_lengths": (5,), "dilation_rates": (2,)}
    if pattern.kind == "Dense" and "window" in changed:
        changed["window"] = (2, 1)
    case = Case(
        N=7, heads=2, kv_heads=1, head_dim=2, value_head_dim=1, dtype=torch.float64, sink=1.0,
        pattern=Named(pattern.kind, changed), causal=causal and may_be_causal(pattern),
    )  # fmt: skip
    q, k, v, _ = (x.requires_grad_() for x in case.inputs())
    options = case.arguments()
    sink = options.pop("sink").requires_grad_()

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, sink: torch.Tensor) -> Any:
        built = case.pattern.built(rs)
        return rs.attention(q, k, v, sink=sink, pattern=built, backend="manual", **options)

    assert torch.autograd.gradcheck(attend, (q, k, v, sink))


WORD = 2**32


def mixed(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = x * 0x846CA68B % WORD
    return x ^ (x >> 16)


def test_dropout_draws_what_its_rule_says_one_pair_at_a_time() -> None:
    p, seed, B, N, H = 0.4, 7 * WORD + 123456789, 2, 5, 3
    q, v = torch.zeros(B, N, H, N), torch.eye(N).view(1, N, 1, N).expand(B, N, H, N)
    out = rs.attention(q, q, v, dropout_p=p, seed=seed)
    for b in range(B):
        stream = mixed(123456789 ^ mixed((7 + b * 0x9E3779B1) % WORD))
        for h in range(H):
            for i in range(N):
                row = mixed((mixed((stream + h * 0x85EBCA77) % WORD) + i) % WORD)
                for j in range(N):
                    drawn = mixed(mixed((row + j * 0xC2B2AE3D) % WORD) ^ row)
                    assert bool(out[b, i, h, j]) == (drawn >= int(p * WORD))


@pytest.mark.parametrize("names", ["q", "k", "v", "sink", "kv", "qv"])
def test_gradients_of_some_inputs_are_those_of_all(names: str) -> None:
    case = typical(SEGMENTS, sink=1.0)
    whole = computed(case, "auto")
    q, k, v, grad_out = case.inputs()
    options = case.arguments()
    tensors = {"q": q, "k": k, "v": v, "sink": options.pop("sink")}
    wanted = [name for name in tensors if name == names or (name in names and names != "sink")]
    for name in wanted:
        tensors[name].requires_grad_()
    out = rs.attention(**tensors, pattern=SEGMENTS.built(rs), **options)
    full = {"q": "grad_query", "k": "grad_key", "v": "grad_value", "sink": "grad_sink"}
    for name, grad in zip(
        wanted, torch.autograd.grad(out, [tensors[name] for name in wanted], grad_out), strict=True
    ):
        assert torch.equal(grad, whole[full[name]])


@every_backend
@every_pattern
def test_a_run_is_reproducible_bit_by_bit(pattern: Named, backend: str) -> None:
    case = typical(pattern, sink=1.0, dtype=torch.bfloat16)
    first, second = (computed(case, backend) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


@settings(max_examples=30)
@given(
    configurations(max_N=100), st.sampled_from(("hilbert", "gilbert", "morton", "snake", "tiles"))
)
def test_a_folded_sequence_follows_the_curve_inside_each_segment(
    configuration: Configuration, ordering: str
) -> None:
    c = configuration
    by_branch = [folded(c.N, w, ordering) for w in c.segment_lengths]
    m = dilated(
        c.N, c.heads, c.kv_heads, c.segment_lengths, c.dilation_rates, c.head_offsets, c.causal,
        by_branch,
    )  # fmt: skip
    pattern = rs.Dilated(
        c.segment_lengths,
        c.dilation_rates,
        head_offsets=c.head_offsets,
        along=rs.Along(ordering, fold=True),
    )
    q, k, v, grad_out = c.inputs()
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out, lse = rs.attention(q, k, v, pattern=pattern, causal=c.causal, return_lse=True)
    grads = torch.autograd.grad(out, leaves, grad_out)
    named_grads = zip(("grad_query", "grad_key", "grad_value"), grads, strict=True)
    with torch.no_grad():
        formula = yardstick(q, k, v, m, grad_out=grad_out)
    assert_exact({"out": out, "lse": lse, **dict(named_grads)}, formula)


def folded(N: int, w: int, ordering: str) -> torch.Tensor:
    """The place of each token where every segment of `w` is folded on a nearly square grid."""
    place = torch.empty(N, dtype=torch.int64)
    for start in range(0, N, w):
        length = min(w, N - start)
        columns = next(c for c in range(1, length + 1) if c * c >= length)
        grid = Coordinates([[i // columns, i % columns] for i in range(length)])
        place[start : start + length] = start + places(grid, ordering)
    return place


def places(tokens: Tokens, ordering: str) -> torch.Tensor:
    by_place = torch.from_numpy(order(ordering, tokens).copy())
    return torch.empty_like(by_place).scatter_(0, by_place, torch.arange(tokens.N))


@pytest.mark.parametrize(
    "ordering", ["hilbert", "gilbert", "morton", "snake", "tiles", "row-major"]
)
def test_a_curve_on_a_plain_sequence_is_refused_naming_the_remedies(ordering: str) -> None:
    q = torch.randn(1, 8, 2, 4)
    with pytest.raises(rs.errors.InvalidArgument, match="Grid") as refusal:
        rs.attention(q, q, q, pattern=rs.Dilated((4,), (1,), along=ordering))
    assert "fold=True" in str(refusal.value)
