"""The float64 formula and the toy backend, each against something simpler."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringspan.contracts import CAUSAL, FULL, InvalidArgument, Mask, MaskCase
from ringspan.testing import ReferenceResult, assert_exact, multiplicity, reference, yardstick
from ringspan.testing.case import Case
from ringspan.testing.formula import Extras
from ringspan.testing.named import Named
from ringspan.testing.strategies import Configuration, cases, configurations
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


def test_null_keys_are_keys_of_score_zero_and_value_zero() -> None:
    q, k, v, grad_out = torch.randn(4, 2, 5, 2, 4, dtype=torch.float64).unbind()
    m, null_keys = multiplicity.dense(5).repeat(2, 1, 1), torch.randint(0, 3, (2, 5))
    found = reference(q, k, v, m, grad_out=grad_out, extras=Extras(null_keys=null_keys))
    longer = [torch.cat((x, torch.zeros(2, 1, 2, 4)), 1) for x in (k, v)]
    with_keys = torch.cat((m, null_keys[..., None]), -1)
    expected = reference(q, *longer, with_keys, grad_out=grad_out).tensors()
    for name, tensor in found.tensors().items():
        close(
            tensor, expected[name][:, :5] if name in ("grad_key", "grad_value") else expected[name]
        )


def test_the_row_of_a_padded_query_is_empty_whatever_it_would_see() -> None:
    q, k, v, grad_out = torch.randn(4, 2, 5, 2, 4, dtype=torch.float64).unbind()
    padded = torch.tensor([[False, True, False, False, True], [False] * 5])
    extras = Extras(null_keys=torch.ones(2, 5, dtype=torch.int64), padded=padded)
    m, sink = multiplicity.dense(5), torch.zeros(2)
    found = reference(q, k, v, m, sink=sink, grad_out=grad_out, extras=extras)
    assert found.grad_query is not None
    for tensor in (found.out, found.grad_query):
        assert torch.equal((tensor == 0).all(-1).all(-1), padded)
    assert torch.equal(found.lse.isneginf(), padded[:, None].expand(2, 2, 5))
    # What the other rows of its sequence give and take is as if the row were not there.
    rest = ~padded[0]
    without = reference(
        q[:1, rest], k[:1], v[:1], m[:, rest], sink=sink, grad_out=grad_out[:1, rest],
        extras=Extras(null_keys=torch.ones(2, 3, dtype=torch.int64)),
    )  # fmt: skip
    assert found.grad_key is not None
    assert without.grad_key is not None
    close(found.out[:1, rest], without.out)
    close(found.grad_key[:1], without.grad_key)


def test_a_sink_of_minus_infinity_is_none() -> None:
    q, k, v, grad_out = torch.randn(4, 1, 3, 2, 4).unbind()
    m = multiplicity.dense(3).repeat(2, 1, 1)
    m[:, 1] = 0
    found = reference(q, k, v, m, sink=torch.full((2,), -torch.inf), grad_out=grad_out).tensors()
    assert (found.pop("grad_sink") == 0).all()
    for name, tensor in reference(q, k, v, m, grad_out=grad_out).tensors().items():
        close(found[name], tensor)


@quick
@given(small, st.sampled_from((0.1, 0.5, 0.9)))
def test_dropout_drops_from_the_output_and_not_from_the_normaliser(
    c: Configuration, p: float
) -> None:
    q, k, v, grad_out = c.inputs()
    m = c.multiplicity() + torch.eye(c.N, dtype=torch.int64)
    keep = torch.rand(c.batch, c.heads, c.N, c.N) >= p
    sink = torch.randn(c.heads, dtype=torch.float64)
    leaves = [x.requires_grad_() for x in (q, k, v, sink)]
    group_size = c.heads // c.kv_heads
    K, V = k.repeat_interleave(group_size, 2), v.repeat_interleave(group_size, 2)
    scores = c.head_dim**-0.5 * torch.einsum("bihd,bjhd->bhij", q, K) + m.double().log()
    both = torch.cat((scores, sink.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)), -1)
    dropped = both.softmax(-1)[..., :-1] * keep / (1 - p)
    out = torch.einsum("bhij,bjhe->bihe", dropped, V)
    grads = torch.autograd.grad(out, leaves, grad_out)
    with torch.no_grad():
        extras = Extras(keep=keep, dropout_p=p)
        found = reference(q, k, v, m, sink=sink, grad_out=grad_out, extras=extras)
    named = dict(zip(("grad_query", "grad_key", "grad_value", "grad_sink"), grads, strict=True))
    named |= {"out": out, "lse": both.logsumexp(-1)}
    for name, tensor in found.tensors().items():
        close(tensor, named[name].detach())


@quick
@given(cases(max_N=40, orderings=["identity"]))
def test_the_plain_kernel_of_float64_is_the_formula_in_every_mode(case: Case) -> None:
    case = replace(case, dtype=torch.float64, stored=None)
    q, k, v, grad_out = case.inputs()
    if case.pattern.along:
        case = replace(case, pattern=Named("Dense"))
    exact = yardstick(
        q, k, v, case.multiplicity(), scale=case.scale(), sink=case.sink_logits(),
        grad_out=grad_out, extras=case.extras(),
    )  # fmt: skip
    assert_exact(exact.plain.tensors(), exact)
    assert all(
        tensor.isfinite().all()
        for tensor in exact.formula.tensors().values()
        if tensor is not exact.formula.lse
    )


@pytest.mark.parametrize(
    ("name", "shape"), [("null_keys", (4,)), ("padded", (5,)), ("keep", (1, 1, 5, 5))]
)
def test_what_changes_rows_is_refused_in_another_shape(name: str, shape: tuple[int, ...]) -> None:
    q = torch.ones(1, 5, 4, 4)
    with pytest.raises(InvalidArgument, match=f"{name}: expected"):
        reference(q, q, q, torch.ones(5, 5), extras=Extras(**{name: torch.ones(shape)}))


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
