"""The manual backend agrees with the formula for every tile."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan import testing
from ringspan.contracts import (
    AttentionBackend,
    DeviceInfo,
    Mask,
    MaskCase,
    Problem,
)
from ringspan_manual import Manual, chunks, ringspan_attention_backends
from torch import Tensor

torch.set_num_threads(1)


BACKEND = Manual()


@dataclass(frozen=True)
class Case:
    """One batch of tiles with random inputs."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad_out: Tensor
    mask: Mask
    scale: float

    @property
    def visible(self) -> Tensor:
        """[B, H, Lq, Lk], from the mask's definition."""
        batch, rows, heads, _ = self.query.shape
        keys = self.key.shape[1]
        if self.mask.case is MaskCase.INTERVAL:
            key = torch.arange(keys)
            low, high = (x[..., None] for x in (self.mask.low, self.mask.high))
            result = (key >= low) & (key < high)
        else:
            result = torch.ones(rows, keys, dtype=torch.bool)
            if self.mask.case is MaskCase.CAUSAL:
                result = result.tril()
        return result.expand(batch, heads, rows, keys)


NAMES = ("out", "lse", "grad_query", "grad_key", "grad_value")


def check(case: Case, results: dict[str, Tensor]) -> None:
    """The accuracy rule, for whatever is in `results`."""
    tensors = (case.query, case.key, case.value, case.visible.long())
    testing.assert_exact(
        results, testing.yardstick(*tensors, scale=case.scale, grad_out=case.grad_out)
    )


def run(backend: AttentionBackend, case: Case) -> dict[str, Tensor]:
    """Forward and backward; a row without keys has `lse = +inf` in the backward."""
    given = {"mask": case.mask, "scale": case.scale}
    out, lse = backend.forward(case.query, case.key, case.value, **given)
    final = lse.masked_fill(lse == -torch.inf, torch.inf)
    grads = backend.backward(case.grad_out, case.query, case.key, case.value, out, final, **given)
    return dict(zip(NAMES, (out, lse, *grads), strict=True))


def strided(x: Tensor, style: str) -> Tensor:
    """`x`'s values in another memory layout, last stride 1."""
    _, length, heads, width = x.shape
    if style == "contiguous":
        return x
    if style == "heads first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    row, tile = 2 * heads * width, 3 * length * heads * width + 7
    if style == "gaps":
        strides = (tile, row, width, 1)
    else:  # each head one row and one head further on, as the heads of a dilated branch lie
        strides = (tile * heads, row * heads, row + width, 1)
    size = sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True)) + 1
    view = torch.full((size,), torch.nan, dtype=x.dtype).as_strided(x.shape, strides)
    return view.copy_(x)


STYLES = ("contiguous", "heads first", "gaps", "diagonal heads")
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def random_case(
    *,
    batch: int = 2,
    rows: int = 33,
    keys: int = 29,
    kv_heads: int = 2,
    group: int = 1,
    head_dim: int = 16,
    value_head_dim: int = 16,
    mask: MaskCase = MaskCase.FULL,
    bounds: str = "BHL",
    dtype: torch.dtype = torch.float32,
    style: str = "contiguous",
    largest_score: float = 3.0,
    seed: int = 0,
) -> Case:
    """Normal inputs; `largest_score` is about the largest score. `bounds`: who has own bounds."""
    generator = torch.Generator().manual_seed(seed)
    heads = kv_heads * group
    keys = rows if mask is MaskCase.CAUSAL else keys

    def normal(length: int, heads: int, width: int) -> Tensor:
        x = torch.randn(batch, length, heads, width, generator=generator, dtype=torch.float64)
        return strided(x.to(dtype), style)

    shape = tuple(
        size if axis in bounds else 1 for axis, size in (("B", batch), ("H", heads), ("L", rows))
    )[-3 if "B" in bounds or "H" in bounds else -1 :]

    def bound() -> Tensor:
        return torch.randint(0, keys + 1, shape, generator=generator).sort(-1).values

    interval = mask is MaskCase.INTERVAL
    low, high = (bound() // 2, bound()) if interval else (None, None)
    return Case(
        normal(rows, heads, head_dim),
        normal(keys, kv_heads, head_dim),
        normal(keys, kv_heads, value_head_dim),
        normal(rows, heads, value_head_dim),
        Mask(mask, low, high),
        scale=largest_score / (3 * head_dim**0.5),
    )


CASES = st.builds(
    random_case,
    batch=st.integers(1, 3),
    rows=st.integers(1, 70),
    keys=st.integers(1, 70),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    head_dim=st.integers(1, 24),
    value_head_dim=st.integers(1, 24),
    mask=st.sampled_from(list(MaskCase)),
    bounds=st.sampled_from(["L", "BL", "HL", "BHL", "B"]),
    dtype=st.sampled_from(DTYPES),
    style=st.sampled_from(STYLES),
    largest_score=st.sampled_from([1.0, 10.0, 1e4]),
    seed=st.integers(0, 2**31),
)
slow_machine = settings(deadline=None, max_examples=60)


@given(case=CASES)
@slow_machine
def test_any_tile_agrees_with_the_formula_forward_and_backward(case: Case) -> None:
    check(case, run(BACKEND, case))


@given(case=CASES)
@slow_machine
def test_any_chunking_agrees_with_the_formula(case: Case) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "SCORES_PER_CHUNK", 300)
        check(case, run(BACKEND, case))


@given(case=CASES)
@slow_machine
def test_rows_without_keys_are_exactly_empty(case: Case) -> None:
    empty = ~case.visible.any(-1)
    results = run(BACKEND, case)
    assert (results["lse"][empty] == -torch.inf).all()
    assert (results["out"].transpose(1, 2)[empty] == 0).all()
    assert (results["grad_query"].transpose(1, 2)[empty] == 0).all()


@given(case=CASES)
@slow_machine
def test_keys_that_no_row_sees_get_exactly_no_gradient(case: Case) -> None:
    group = case.query.shape[2] // case.key.shape[2]
    unseen = ~case.visible.any(2).unflatten(1, (-1, group)).any(2)
    results = run(BACKEND, case)
    assert (results["grad_key"].transpose(1, 2)[unseen] == 0).all()
    assert (results["grad_value"].transpose(1, 2)[unseen] == 0).all()


@given(case=CASES, cuts=st.lists(st.integers(0, 70), max_size=3))
@slow_machine
def test_gradients_of_parts_of_the_keys_given_the_global_result_add_up(
    case: Case, cuts: list[int]
) -> None:
    keys = case.key.shape[1]
    low, high = (torch.zeros(1, dtype=torch.int64), torch.full((1,), keys))
    if case.mask.case is MaskCase.CAUSAL:
        high = torch.arange(1, keys + 1)
    elif case.mask.case is MaskCase.INTERVAL:
        low, high = case.mask.low, case.mask.high
    out, lse = BACKEND.forward(case.query, case.key, case.value, mask=case.mask, scale=case.scale)
    final = lse.masked_fill(lse == -torch.inf, torch.inf)
    dq = torch.zeros(case.query.shape, dtype=lse.dtype)
    parts = []
    for start, stop in pairwise(sorted({0, keys, *(cut % keys for cut in cuts)})):
        mask = Mask(MaskCase.INTERVAL, low - start, high - start)
        here = (slice(None), slice(start, stop))
        grads = BACKEND.backward(
            case.grad_out, case.query, case.key[here], case.value[here], out, final,
            mask=mask, scale=case.scale,
        )  # fmt: skip
        dq += grads.query
        parts.append((grads.key, grads.value))
    dk, dv = (torch.cat(grads, 1) for grads in zip(*parts, strict=True))
    check(case, {"grad_query": dq, "grad_key": dk, "grad_value": dv})


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", list(MaskCase))
@pytest.mark.parametrize("rows", [1, 64, 192])
def test_lengths_that_broke_others_agree(dtype: torch.dtype, case: MaskCase, rows: int) -> None:
    tile = random_case(batch=1, rows=rows, keys=rows + 1, group=3, mask=case, dtype=dtype)
    check(tile, run(BACKEND, tile))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [1, 33, 80, 256, 512])
def test_head_dimensions_small_odd_and_large_agree(dtype: torch.dtype, head_dim: int) -> None:
    tile = random_case(
        batch=1, head_dim=head_dim, value_head_dim=head_dim, mask=MaskCase.CAUSAL, dtype=dtype
    )
    check(tile, run(BACKEND, tile))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("mask", list(MaskCase))
def test_thousands_of_tiny_tiles_agree(dtype: torch.dtype, mask: MaskCase) -> None:
    tile = random_case(
        batch=3000, rows=2, keys=3, head_dim=4, value_head_dim=4, mask=mask, dtype=dtype
    )
    check(tile, run(BACKEND, tile))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_hidden_key_with_a_huge_score_contributes_nothing(dtype: torch.dtype) -> None:
    rows = keys = 40
    q = torch.full((1, rows, 1, 4), 50.0, dtype=dtype)
    k = torch.full((1, keys, 1, 4), 50.0, dtype=dtype)  # score 10,000
    k[:, ::2] = -50.0  # score -10,000
    v = torch.randn(1, keys, 1, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    even = torch.arange(rows) // 2 * 2
    case = Case(q, k, v, torch.ones_like(q), Mask(MaskCase.INTERVAL, even, even + 1), scale=1.0)
    results = run(BACKEND, case)
    assert torch.equal(results["out"], v[:, even])
    assert (results["lse"] == -10_000).all()
    assert (results["grad_key"][:, 1::2] == 0).all()
    assert (results["grad_value"][:, 1::2] == 0).all()
    assert (results["grad_value"][:, ::2] == 2).all()


@pytest.mark.parametrize("mask", list(MaskCase))
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [-1.0, -0.1, -0.0, 0.0, 1e-50])
def test_a_scale_that_is_not_above_zero_agrees(
    scale: float, dtype: torch.dtype, mask: MaskCase
) -> None:
    case = replace(random_case(group=2, mask=mask, dtype=dtype), scale=scale)
    check(case, run(BACKEND, case))


@pytest.mark.parametrize("mask", list(MaskCase))
def test_poisoned_memory_does_not_reach_a_result(mask: MaskCase) -> None:
    case = random_case(mask=mask, head_dim=5, value_head_dim=9)
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)  # new, unwritten tensors now hold NaN
    try:
        assert torch.empty(3).isnan().all()
        results = run(BACKEND, case)
    finally:
        torch.use_deterministic_algorithms(False)
    check(case, results)


def test_autocast_leaves_the_result_alone() -> None:
    case = random_case(mask=MaskCase.INTERVAL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = run(BACKEND, case)
    check(case, results)
    assert results["out"].dtype == torch.float32


def test_no_graph_is_recorded() -> None:
    case = random_case()
    case.query.requires_grad_()
    assert not any(x.requires_grad for x in run(BACKEND, case).values())


def test_the_dtypes_are_the_contracts() -> None:
    for dtype in DTYPES:
        sums = torch.float64 if dtype == torch.float64 else torch.float32
        for mask in MaskCase:
            results = run(BACKEND, random_case(dtype=dtype, mask=mask))
            assert results["out"].dtype == dtype
            assert results["lse"].dtype == sums
            assert {results[name].dtype for name in NAMES[2:]} <= {dtype, sums}


def test_no_buffer_is_quadratic_in_the_length() -> None:
    tile = random_case(batch=1, rows=3000, keys=3000, kv_heads=1, head_dim=1, value_head_dim=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "SCORES_PER_CHUNK", 6000)
        with torch.profiler.profile(profile_memory=True) as profile:
            run(BACKEND, tile)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 6000 * 4


def test_it_is_offered_and_last_in_order() -> None:
    (backend,) = ringspan_attention_backends()
    assert backend.name == "manual"
    assert backend.priority(DeviceInfo(type="cpu")) < 0


def test_the_probe_says_why_a_device_does_not_serve() -> None:
    assert BACKEND.probe(DeviceInfo(type="cpu")).usable
    assert "supported: cpu" in BACKEND.probe(DeviceInfo(type="abacus")).reason
    if not torch.cuda.is_available():
        found = BACKEND.probe(DeviceInfo(type="cuda", index=0))
        assert "sees no cuda device" in found.reason
        assert found.remedy


def test_a_foreign_device_is_one_reason_in_the_words_of_the_capabilities() -> None:
    problem = Problem("abacus", "float32", MaskCase.FULL, 64, 64)
    reasons = [BACKEND.probe(DeviceInfo(type="abacus")).reason, *BACKEND.reasons_against(problem)]
    assert set(reasons) == {"device abacus (supported: cpu, cuda, mps, xpu)"}


def test_float64_on_metal_is_refused_with_its_reason() -> None:
    problem = Problem("mps", "float64", MaskCase.FULL, 64, 64)
    assert any("float64" in reason for reason in BACKEND.reasons_against(problem))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mask", list(MaskCase))
def test_a_gpu_gives_the_same_numbers(mask: MaskCase) -> None:
    case = random_case(mask=mask, dtype=torch.float64)
    moved = Mask(mask, *(x if x is None else x.cuda() for x in (case.mask.low, case.mask.high)))
    tensors = (x.cuda() for x in (case.query, case.key, case.value, case.grad_out))
    results = run(BACKEND, Case(*tensors, moved, case.scale))
    check(case, {name: x.cpu() for name, x in results.items()})
