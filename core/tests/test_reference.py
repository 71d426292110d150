"""The float64 formula, the multiplicities and the toy backend, each against something simpler."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from ringspan.contracts import CAUSAL, FULL, InvalidArgument, Mask, MaskCase
from ringspan.testing import ReferenceResult, multiplicity, reference
from ringspan.testing.strategies import Configuration, configurations
from ringspan.testing.toy import Toy
from torch import Tensor

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def close(actual: Tensor, expected: Tensor) -> None:
    """Equal to float64 rounding, -inf included."""
    torch.testing.assert_close(actual.double(), expected.double(), rtol=1e-11, atol=1e-11)


def naive(
    q: Tensor, k: Tensor, v: Tensor, m: Tensor, scale: float, sink: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The formula as one line of differentiable torch; only for rows that see something."""
    group_size = q.shape[2] // k.shape[2]
    k, v = k.repeat_interleave(group_size, 2), v.repeat_interleave(group_size, 2)
    weights = m * torch.exp(scale * torch.einsum("bihd,bjhd->bhij", q, k))
    Z = weights.sum(-1) + (0 if sink is None else sink.exp()[:, None])
    return torch.einsum("bhij,bjhe->bihe", weights / Z[..., None], v), Z.log()


small = configurations(max_N=40, dtypes=[torch.float64])


def test_the_formula_is_what_its_sums_say_one_number_at_a_time() -> None:
    q, k, v = torch.randn(3, 1, 4, 2, 3, dtype=torch.float64).unbind()
    m, z, scale = torch.randint(0, 3, (2, 4, 4)), torch.randn(2), 0.7
    found = reference(q, k, v, m, scale=scale, sink=z)
    for h in range(2):
        for i in range(4):
            s = [
                scale * sum(float(q[0, i, h, d] * k[0, j, h, d]) for d in range(3))
                for j in range(4)
            ]
            weights = [int(m[h, i, j]) * math.exp(s[j]) for j in range(4)]
            Z = math.exp(z[h]) + sum(weights)
            assert float(found.lse[0, h, i]) == pytest.approx(math.log(Z))
            for d in range(3):
                out = sum(weights[j] * float(v[0, j, h, d]) for j in range(4)) / Z
                assert float(found.out[0, i, h, d]) == pytest.approx(out)


@quick
@given(small, st.booleans())
def test_the_explicit_gradients_are_those_of_autograd(c: Configuration, with_sink: bool) -> None:
    q, k, v, grad_out = c.inputs()
    # Every query sees itself, since a row without keys has no derivative to compare with.
    m = c.multiplicity() + torch.eye(c.N, dtype=torch.int64)
    sink = torch.randn(c.heads, dtype=torch.float64) if with_sink else None
    leaves = [x.requires_grad_() for x in (q, k, v, sink) if x is not None]
    scale = c.head_dim**-0.5
    out, lse = naive(q, k, v, m, scale, sink)
    grads = torch.autograd.grad(out, leaves, grad_out)
    with torch.no_grad():
        found = reference(q, k, v, m, sink=sink, grad_out=grad_out)
    named = {"out": out, "lse": lse}
    names = ("grad_query", "grad_key", "grad_value", "grad_sink")
    named |= dict(zip(names, grads, strict=False))
    assert found.tensors().keys() == named.keys()
    for name, tensor in found.tensors().items():
        close(tensor, named[name].detach())


def test_a_sink_per_query_has_a_gradient_per_query() -> None:
    q, k, v, grad_out = torch.randn(4, 2, 5, 3, 4, dtype=torch.float64).unbind()
    m, z = multiplicity.dense(5, causal=True), torch.randn(3)
    shared = reference(q, k, v, m, sink=z, grad_out=grad_out)
    varying = reference(q, k, v, m, sink=z[:, None].expand(3, 5), grad_out=grad_out)
    assert varying.grad_sink is not None
    assert shared.grad_sink is not None
    close(varying.grad_sink.sum(1), shared.grad_sink)
    close(varying.out, shared.out)


def test_a_row_without_keys_is_zero_and_minus_infinity_and_has_no_gradient() -> None:
    q, k, v, grad_out = torch.randn(4, 1, 6, 2, 4).unbind()
    m = multiplicity.dense(6).repeat(2, 1, 1)
    m[:, 2] = 0
    m[:, :, 4] = 0
    found = reference(q, k, v, m, grad_out=grad_out)
    assert (found.lse[..., 2] == -torch.inf).all()
    for tensor, row in ((found.out, 2), (found.grad_query, 2), (found.grad_key, 4)):
        assert tensor is not None
        assert (tensor[:, row] == 0).all()
        assert tensor.isfinite().all()
    nothing = reference(q, k, v, torch.zeros(6, 6, dtype=torch.int64), sink=torch.zeros(2))
    assert (nothing.out == 0).all()
    assert (nothing.lse == 0).all()


def test_scores_of_ten_thousand_do_not_overflow() -> None:
    q, k, v, grad_out = torch.randn(4, 1, 16, 1, 4).unbind()
    found = reference(q, k, v, multiplicity.dense(16), scale=1e4, grad_out=grad_out)
    assert all(tensor.isfinite().all() for tensor in found.tensors().values())


@quick
@given(small)
def test_the_mixture_of_branches_weighted_by_their_denominators_is_the_formula(
    c: Configuration,
) -> None:
    q, k, v, _ = c.inputs()
    branches = [
        reference(q, k, v, branch_multiplicity(c, branch))
        for branch in range(len(c.dilation_rates))
    ]
    whole = reference(q, k, v, c.multiplicity())
    lse, out = merge(branches)
    close(lse, whole.lse)
    close(out, whole.out)


def branch_multiplicity(c: Configuration, branch: int) -> Tensor:
    return multiplicity.dilated(
        c.N,
        c.heads,
        c.kv_heads,
        [c.segment_lengths[branch]],
        [c.dilation_rates[branch]],
        c.head_offsets,
        c.causal,
    )


def merge(parts: list[ReferenceResult]) -> tuple[Tensor, Tensor]:
    """Each part's output, weighted by its share of the common denominator."""
    lse = torch.stack([part.lse for part in parts]).logsumexp(0)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)
    shares = [(part.lse - finite).exp().transpose(1, 2)[..., None] for part in parts]
    return lse, sum((s * part.out for s, part in zip(shares, parts, strict=True)), torch.zeros(()))


@quick
@given(small, st.data())
def test_two_halves_of_the_keys_merge_to_the_whole(c: Configuration, data: st.DataObject) -> None:
    q, k, v, _ = c.inputs()
    m = c.multiplicity()
    cut = data.draw(st.integers(0, c.N), label="cut")
    before = torch.arange(c.N) < cut
    lse, out = merge([reference(q, k, v, m * before), reference(q, k, v, m * ~before)])
    whole = reference(q, k, v, m)
    close(lse, whole.lse)
    close(out, whole.out)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_attention_is_torchs(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 9, 4, 8, dtype=torch.float64).unbind()
    expected = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), is_causal=causal
    )
    close(reference(q, k, v, multiplicity.dense(9, causal=causal)).out, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("kv_shape", "m_shape", "sink_shape", "words"),
    [
        ((1, 5, 2, 3), (5, 5), (4,), "k, v: expected"),
        ((1, 5, 3, 4), (5, 5), (4,), "q: expected a multiple of 3 heads"),
        ((1, 5, 2, 4), (5, 6), (4,), "multiplicity: expected a shape that broadcasts"),
        ((1, 5, 2, 4), (5, 5), (5,), "sink: expected"),
    ],
)
def test_shapes_that_do_not_fit_are_refused_by_name(
    kv_shape: tuple[int, ...], m_shape: tuple[int, ...], sink_shape: tuple[int, ...], words: str
) -> None:
    q, k = torch.ones(1, 5, 4, 4), torch.ones(kv_shape)
    with pytest.raises(InvalidArgument, match=words):
        reference(q, k, k, torch.ones(m_shape, dtype=torch.int64), sink=torch.ones(sink_shape))


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


LOW, HIGH = [0, 0, 2, 2, 5, 6], [1, 0, 3, 6, 6, 6]
INTERVALS = Mask(
    MaskCase.INTERVAL,
    low=torch.tensor(LOW).view(1, 1, 6),
    high=torch.tensor(HIGH).view(1, 1, 6),
)


@pytest.mark.parametrize(
    ("mask", "seen"),
    [
        (FULL, lambda i, j: True),
        (CAUSAL, lambda i, j: j <= i),
        (INTERVALS, lambda i, j: LOW[i] <= j < HIGH[i]),
    ],
)
def test_the_toy_backend_computes_the_formula(mask: Mask, seen: Callable[[int, int], bool]) -> None:
    shapes = ((2, 6, 4, 3), (2, 6, 2, 3), (2, 6, 2, 5), (2, 6, 4, 5))
    q, k, v, grad_out = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    m = torch.tensor([[int(seen(i, j)) for j in range(6)] for i in range(6)])
    expected = reference(q, k, v, m, scale=0.5, grad_out=grad_out)
    toy = Toy()
    out, lse = toy.forward(q, k, v, mask=mask, scale=0.5)
    final = lse.masked_fill(lse == -torch.inf, torch.inf)
    grads = toy.backward(grad_out, q, k, v, out, final, mask=mask, scale=0.5)
    for name, tensor in zip(expected.tensors(), (out, lse, *grads), strict=True):
        close(tensor, expected.tensors()[name])
