"""The accuracy rule: it accepts what is right in every dtype and rejects what is subtly wrong."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ringspan.contracts import InvalidArgument
from ringspan.testing import Yardstick, assert_exact, measure, multiplicity, yardstick
from ringspan.testing.formula import Extras
from ringspan.testing.strategies import DTYPES, Configuration, configurations
from torch import Tensor

quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])

Tensors = dict[str, Tensor]


def in_pieces(
    c: Configuration,
    m: Tensor,
    *,
    pieces: int,
    scale: float,
    lse_for_backward: Tensor | None = None,
) -> Tensors:
    """A right kernel as an engine would run it: keys in pieces, merged, wide accumulators.

    Products take operands rounded to the dtype, as tensor cores do, and accumulate in float32.
    """
    q, k, v, grad_out = c.inputs()
    wide = torch.promote_types(c.dtype, torch.float32)
    group_size = c.heads // c.kv_heads
    Q, dO = q.to(wide), grad_out.to(wide)
    K, V = (x.to(wide).repeat_interleave(group_size, 2) for x in (k, v))
    S = scale * torch.einsum("bihd,bjhd->bhij", Q, K) + m.to(wide).log()
    out, lse = torch.zeros(dO.shape, dtype=wide), torch.full(S.shape[:3], -torch.inf, dtype=wide)
    for keys in torch.arange(c.N).chunk(pieces):
        piece_lse = S[..., keys].logsumexp(-1)
        P = (S[..., keys] - no_inf(piece_lse)[..., None]).exp().to(c.dtype).to(wide)
        piece_out = torch.einsum("bhij,bjhe->bihe", P, V[:, keys])
        merged = torch.logaddexp(lse, piece_lse)
        shares = ((x - no_inf(merged)).exp().mT[..., None] for x in (lse, piece_lse))
        out = next(shares) * out + next(shares) * piece_out
        lse = merged
    out = out.to(c.dtype)
    final = lse if lse_for_backward is None else lse_for_backward
    delta = (dO * out.to(wide)).sum(-1).mT
    P = (S - no_inf(final)[..., None]).exp()
    dP = torch.einsum("bihe,bjhe->bhij", dO, V)
    dS = (scale * P * (dP - delta[..., None])).to(c.dtype).to(wide)
    P = P.to(c.dtype).to(wide)
    grads = {
        "grad_query": torch.einsum("bhij,bjhd->bihd", dS, K),
        "grad_key": folded(torch.einsum("bhij,bihd->bjhd", dS, Q), group_size),
        "grad_value": folded(torch.einsum("bhij,bihe->bjhe", P, dO), group_size),
    }
    return {"out": out, "lse": lse} | {name: grad.to(c.dtype) for name, grad in grads.items()}


def no_inf(lse: Tensor) -> Tensor:
    return lse.masked_fill(lse == -torch.inf, 0.0)


def folded(x: Tensor, group_size: int) -> Tensor:
    return x.reshape(*x.shape[:2], -1, group_size, x.shape[-1]).sum(3)


def exact_for(c: Configuration, scale: float) -> Yardstick:
    q, k, v, grad_out = c.inputs()
    return yardstick(q, k, v, c.multiplicity(), scale=scale, grad_out=grad_out)


@quick
@given(configurations(max_N=200), st.integers(1, 9), st.sampled_from((0.01, 0.5, 30.0, 3000.0)))
def test_a_right_kernel_in_any_number_of_pieces_is_accepted(
    c: Configuration, pieces: int, scale: float
) -> None:
    assert_exact(in_pieces(c, c.multiplicity(), pieces=pieces, scale=scale), exact_for(c, scale))


# In 16 bits a leak into one row drowns in rounding; what a kernel sees is tested in these.
WIDE = (torch.float32, torch.float64)
TYPICAL = Configuration(
    N=192,
    segment_lengths=(48, 192),
    dilation_rates=(1, 3),
    heads=4,
    kv_heads=2,
    head_dim=16,
    value_head_dim=16,
    causal=True,
)


def kernel(c: Configuration) -> Tensors:
    return in_pieces(c, c.multiplicity(), pieces=3, scale=0.25)


def rejected(actual: Tensors, exact: Yardstick) -> set[str]:
    """The names of the tensors that are not exact."""
    return {name for name, found in measure(actual, exact).items() if not found.exact}


@pytest.mark.parametrize("dtype", WIDE, ids=str)
def test_a_causal_leak_of_one_key_in_one_row_of_one_head_is_rejected(dtype: torch.dtype) -> None:
    c = replace(TYPICAL, dtype=dtype)
    leaking = c.multiplicity()
    leaking[0, 96, 97] = 1
    found = in_pieces(c, leaking, pieces=3, scale=0.25)
    assert "lse" in rejected(found, exact_for(c, 0.25))
    with pytest.raises(AssertionError, match=r"(?s)not exact in .*lse: error .*, limit .*, ratio"):
        assert_exact(found, exact_for(c, 0.25))


@pytest.mark.parametrize("dtype", [*WIDE, torch.float16], ids=str)
def test_a_bf16_lse_is_rejected_by_itself(dtype: torch.dtype) -> None:
    c = replace(TYPICAL, dtype=dtype)
    found = kernel(c)
    found["lse"] = found["lse"].bfloat16()
    assert rejected(found, exact_for(c, 0.25)) == {"lse"}


def test_a_bf16_lse_inside_is_rejected_by_the_gradients_it_spoils() -> None:
    narrow = kernel(TYPICAL)["lse"].bfloat16().float()
    found = in_pieces(
        TYPICAL, TYPICAL.multiplicity(), pieces=3, scale=0.25, lse_for_backward=narrow
    )
    assert rejected(found, exact_for(TYPICAL, 0.25)) == {"grad_query", "grad_key", "grad_value"}


# In bfloat16 this fault is about as large as what rounding alone may cost these gradients.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_detached_mixing_weights_are_rejected(dtype: torch.dtype) -> None:
    c = replace(TYPICAL, dtype=dtype)
    q, k, v, grad_out = (x.double() for x in c.inputs())
    leaves = [x.requires_grad_() for x in (q, k, v)]
    branches = []
    for w, r in zip(c.segment_lengths, c.dilation_rates, strict=True):
        m = multiplicity.dilated(c.N, c.heads, c.kv_heads, [w], [r], causal=True)
        K, V = (x.repeat_interleave(2, 2) for x in (k, v))
        weights = m * (0.25 * torch.einsum("bihd,bjhd->bhij", q, K)).exp()
        Z = weights.sum(-1, keepdim=True)
        branches.append((Z, torch.einsum("bhij,bjhe->bhie", weights / Z.clamp_min(1e-9), V)))
    total = sum((Z for Z, _ in branches), torch.zeros(()))
    out = sum(((Z / total).detach() * out for Z, out in branches), torch.zeros(())).transpose(1, 2)
    grads = torch.autograd.grad(out, leaves, grad_out)
    found = dict(zip(("grad_query", "grad_key", "grad_value"), grads, strict=True))
    found = {"out": out} | found
    found = {name: tensor.to(dtype) for name, tensor in found.items()}
    assert rejected(found, exact_for(c, 0.25)) == {"grad_query", "grad_key"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["out", "grad_query", "grad_key", "grad_value"])
def test_one_per_cent_is_rejected_where_the_dtype_can_tell(name: str, dtype: torch.dtype) -> None:
    c = replace(TYPICAL, dtype=dtype)
    found = kernel(c)
    found[name] = 1.01 * found[name]
    assert rejected(found, exact_for(c, 0.25)) == {name}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["out", "lse", "grad_query", "grad_key", "grad_value"])
def test_a_nan_is_rejected(name: str, dtype: torch.dtype) -> None:
    c = replace(TYPICAL, dtype=dtype)
    found = kernel(c)
    found[name] = found[name].clone().index_fill_(1, torch.tensor(1), torch.nan)
    assert rejected(found, exact_for(c, 0.25)) == {name}


# In the second half of a segment of 12, only every third token sees and is seen.
SPARSE = replace(TYPICAL, N=24, segment_lengths=(12,), dilation_rates=(3,), causal=False)


def test_a_row_without_keys_must_be_exactly_zero() -> None:
    found, exact = kernel(SPARSE), exact_for(SPARSE, 0.25)
    assert_exact(found, exact)
    for name in ("out", "grad_query", "grad_key", "grad_value"):
        spoilt = found | {name: found[name].clone()}
        spoilt[name][0, 2, 0, 0] = 1e-30
        with pytest.raises(AssertionError, match=f"{name}: .*not exactly zero at 1 elements"):
            assert_exact(spoilt, exact)


@pytest.mark.parametrize("value", [0.0, torch.inf, -1e30])
def test_the_lse_of_a_row_without_keys_must_be_minus_infinity(value: float) -> None:
    found = kernel(SPARSE)
    found["lse"][0, 0, 2] = value
    with pytest.raises(AssertionError, match="-inf in the wrong place at 1 of 96 elements"):
        assert_exact(found, exact_for(SPARSE, 0.25))


def test_a_gradient_that_cancels_to_nothing_may_keep_its_rounding() -> None:
    # One token: its probability is 1 whatever the score, so dq is 0 but computed as x - x.
    c = Configuration(
        N=1, segment_lengths=(1,), dilation_rates=(1,), head_dim=64, value_head_dim=64
    )
    found, exact = kernel(c), exact_for(c, 0.25)
    found["grad_query"] = found["grad_query"] + 1e-9
    assert_exact(found, exact)
    found["grad_query"] = found["grad_query"] + 1e-3
    assert rejected(found, exact) == {"grad_query"}


def test_a_probability_may_underflow_on_one_side_only() -> None:
    # exp(-745.1) is the smallest float64, and a little less is zero.
    q, k = torch.ones(1, 1, 1, 1).double(), torch.tensor([0.0, -746.0]).double().view(1, 2, 1, 1)
    exact = yardstick(q, k, k, torch.ones(1, 2), scale=1.0, grad_out=q)
    assert exact.formula.grad_value is not None
    assert exact.formula.grad_value[0, 1] == 0
    assert_exact({"grad_value": exact.formula.grad_value + torch.finfo(torch.float64).tiny}, exact)


def test_a_sinks_gradient_is_measured_too() -> None:
    q, k, v, grad_out = torch.randn(4, 2, 16, 3, 8).unbind()
    sink = torch.randn(3)
    exact = yardstick(q, k, v, multiplicity.dense(16), sink=sink, grad_out=grad_out)
    found = exact.plain.tensors()
    assert_exact(found, exact)
    assert rejected(found | {"grad_sink": 1.01 * found["grad_sink"]}, exact) == {"grad_sink"}


def with_extras(extras: Extras, sink: Tensor) -> Yardstick:
    q, k, v, grad_out = TYPICAL.inputs()
    m = TYPICAL.multiplicity()
    return yardstick(q, k, v, m, sink=sink, grad_out=grad_out, extras=extras)


def test_slight_faults_of_the_modes_are_rejected() -> None:
    B, H, N = TYPICAL.batch, TYPICAL.heads, TYPICAL.N
    sink, generator = torch.zeros(H), torch.Generator().manual_seed(0)
    keep = torch.rand(B, H, N, N, generator=generator) > 0.2
    seen = TYPICAL.multiplicity().nonzero()[7]
    right = Extras(
        null_keys=torch.ones(H, N, dtype=torch.int64),
        padded=torch.arange(N).expand(B, N) >= N - 5,
        keep=keep,
        dropout_p=0.2,
    )
    exact = with_extras(right, sink)
    assert_exact(exact.plain.tensors(), exact)
    flipped = keep.clone()
    flipped[(0, *seen)] ^= True
    faults = {
        "a sink merged twice": with_extras(right, sink + math.log(2)),
        "no null keys": with_extras(replace(right, null_keys=None), sink),
        "one padded row": with_extras(
            replace(right, padded=torch.arange(N).expand(B, N) > N - 5), sink
        ),
        "one pair kept": with_extras(replace(right, keep=flipped), sink),
        "a dropped normaliser": with_extras(replace(right, dropout_p=0.21), sink),
    }
    for fault, wrong in faults.items():
        assert rejected(wrong.plain.tensors(), exact), fault


@pytest.mark.parametrize(("name", "shape"), [("gradient", (1, 24, 4, 16)), ("out", (24, 4, 16))])
def test_an_unknown_name_or_shape_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InvalidArgument, match=r"expected out \[1, 24, 4, 16\], lse"):
        assert_exact({name: torch.zeros(shape)}, exact_for(SPARSE, 0.25))


def test_no_tokens_and_no_batch_are_exact() -> None:
    q = torch.zeros(0, 8, 2, 4)
    exact = yardstick(q, q, q, multiplicity.dense(8), grad_out=q)
    assert_exact({"out": q, "grad_query": q}, exact)
