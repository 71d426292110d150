"""Every combination of plugins gives the formula's numbers, by the one rule of accuracy."""

from __future__ import annotations

from dataclasses import replace

import pytest
import ringspan as rs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.contracts import Coordinates, Grid, Tokens
from ringspan.plan.orders import order
from ringspan.testing import assert_exact, yardstick
from ringspan.testing.multiplicity import dense, dilated
from ringspan.testing.strategies import Configuration, configurations

NAMES = ("grad_query", "grad_key", "grad_value")
BACKENDS = ("auto", "manual", "sdpa-cpu")
ORDERINGS = ("identity", "row-major", "snake", "tiles", "hilbert", "morton")


def pattern_of(configuration: Configuration, along: rs.Along | str | None = None) -> rs.Dilated:
    return rs.Dilated(
        configuration.segment_lengths,
        configuration.dilation_rates,
        head_offsets=configuration.head_offsets,
        along=along,
    )


def computed(
    inputs: tuple[torch.Tensor, ...], pattern: rs.Dense | rs.Dilated, **options: object
) -> dict[str, torch.Tensor]:
    """Output, lse and gradients through the front door."""
    q, k, v = (x.detach().requires_grad_() for x in inputs[:3])
    out, lse = rs.attention(q, k, v, pattern=pattern, return_lse=True, **options)
    grads = torch.autograd.grad(out, (q, k, v), inputs[3])
    return {"out": out, "lse": lse, **dict(zip(NAMES, grads, strict=True))}


@settings(max_examples=500)
@given(configurations(max_N=200), st.sampled_from(BACKENDS))
def test_five_hundred_configurations_agree_with_the_formula(
    configuration: Configuration, backend: str
) -> None:
    inputs = configuration.inputs()
    exact = yardstick(*inputs[:3], configuration.multiplicity(), grad_out=inputs[3])
    actual = computed(
        inputs, pattern_of(configuration), causal=configuration.causal, backend=backend
    )
    assert_exact(actual, exact)


def places(tokens: Tokens, ordering: str) -> torch.Tensor:
    by_place = torch.from_numpy(order(ordering, tokens).copy())
    return torch.empty_like(by_place).scatter_(0, by_place, torch.arange(tokens.N))


@st.composite
def geometries(draw: st.DrawFn) -> Tokens:
    axes = draw(st.integers(2, 3))
    if draw(st.booleans()):
        return Grid(*draw(st.lists(st.integers(1, 7), min_size=axes, max_size=axes)))
    points = st.lists(st.integers(0, 40), min_size=axes, max_size=axes)
    return Coordinates(draw(st.lists(points, min_size=1, max_size=90)))


@settings(max_examples=60)
@given(geometries(), configurations(max_N=100), st.sampled_from(ORDERINGS))
def test_a_pattern_along_an_ordering_is_taken_in_places_and_causal_in_positions(
    tokens: Tokens, configuration: Configuration, ordering: str
) -> None:
    configuration = replace(configuration, N=tokens.N)
    inputs = configuration.inputs()
    multiplicity = dilated(
        tokens.N,
        configuration.heads,
        configuration.kv_heads,
        configuration.segment_lengths,
        configuration.dilation_rates,
        configuration.head_offsets,
        configuration.causal,
        places(tokens, ordering),
    )
    actual = computed(
        inputs, pattern_of(configuration, ordering), causal=configuration.causal, tokens=tokens
    )
    exact = yardstick(*inputs[:3], multiplicity, grad_out=inputs[3])
    assert_exact(actual, exact)


@settings(max_examples=60)
@given(geometries(), configurations(max_N=100), st.sampled_from(ORDERINGS))
def test_storage_in_another_order_changes_nothing(
    tokens: Tokens, configuration: Configuration, ordering: str
) -> None:
    configuration = replace(configuration, N=tokens.N)
    inputs = configuration.inputs()
    layout = rs.Layout(tokens, ordering=ordering)
    stored = tuple(layout.shard(x) for x in inputs)
    actual = computed(stored, pattern_of(configuration), causal=configuration.causal, layout=layout)
    restored = {name: layout.gather(x, dim=2 if name == "lse" else 1) for name, x in actual.items()}
    exact = yardstick(*inputs[:3], configuration.multiplicity(), grad_out=inputs[3])
    assert_exact(restored, exact)


@settings(max_examples=30)
@given(configurations(max_N=100), st.sampled_from(("hilbert", "morton", "snake", "tiles")))
def test_a_folded_sequence_follows_the_curve_inside_each_segment(
    configuration: Configuration, ordering: str
) -> None:
    N = configuration.N
    by_branch = []
    for w in configuration.segment_lengths:
        folded = torch.empty(N, dtype=torch.int64)
        for start in range(0, N, w):
            length = min(w, N - start)
            columns = 1
            while columns * columns < length:
                columns += 1
            grid = Coordinates([[i // columns, i % columns] for i in range(length)])
            folded[start : start + length] = start + places(grid, ordering)
        by_branch.append(folded)
    inputs = configuration.inputs()
    multiplicity = dilated(
        N,
        configuration.heads,
        configuration.kv_heads,
        configuration.segment_lengths,
        configuration.dilation_rates,
        configuration.head_offsets,
        configuration.causal,
        by_branch,
    )
    pattern = pattern_of(configuration, rs.Along(ordering, fold=True))
    actual = computed(inputs, pattern, causal=configuration.causal)
    assert_exact(actual, yardstick(*inputs[:3], multiplicity, grad_out=inputs[3]))


@pytest.mark.parametrize("ordering", ["hilbert", "morton", "snake", "tiles", "row-major"])
def test_a_curve_on_a_plain_sequence_is_refused_naming_the_remedies(ordering: str) -> None:
    q = torch.randn(1, 8, 2, 4)
    with pytest.raises(rs.errors.InvalidArgument, match="Grid") as refusal:
        rs.attention(q, q, q, pattern=rs.Dilated((4,), (1,), along=ordering))
    assert "fold=True" in str(refusal.value)


@pytest.mark.parametrize("backend", ["manual", "sdpa-cpu"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("causal", [False, True])
def test_scores_of_magnitude_ten_thousand_stay_exact(
    backend: str, dtype: torch.dtype, causal: bool
) -> None:
    generator = torch.Generator().manual_seed(3)
    q, k, v, grad_out = (torch.randn(1, 70, 2, 16, generator=generator).to(dtype) for _ in range(4))
    scale = 1e4 / (q.double().norm(dim=-1).max() * k.double().norm(dim=-1).max()).item()
    exact = yardstick(q, k, v, dense(70, causal=causal), scale=scale, grad_out=grad_out)
    actual = computed((q, k, v, grad_out), rs.Dense(), causal=causal, scale=scale, backend=backend)
    assert_exact(actual, exact)


@pytest.mark.parametrize("N", [1, 64, 192, 320])
@pytest.mark.parametrize("kv_heads", [1, 3])
def test_the_cases_that_have_broken_others(N: int, kv_heads: int) -> None:
    configuration = Configuration(
        N=N, segment_lengths=(50, 1000), dilation_rates=(7, 11), heads=3 * kv_heads,
        kv_heads=kv_heads, head_dim=8, value_head_dim=5, causal=True, batch=2,
    )  # fmt: skip
    inputs = configuration.inputs()
    exact = yardstick(*inputs[:3], configuration.multiplicity(), grad_out=inputs[3])
    for backend in BACKENDS:
        assert_exact(
            computed(inputs, pattern_of(configuration), causal=True, backend=backend), exact
        )
