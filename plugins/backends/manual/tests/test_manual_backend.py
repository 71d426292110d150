"""The manual backend agrees with the formula for every tile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan import testing
from ringspan.contracts import (
    AttentionBackend,
    DeviceInfo,
    Dropout,
    Mask,
    MaskCase,
    Problem,
)
from ringspan_manual import Manual, chunks, ringspan_attention_backends
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

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
    dropout: Dropout | None = None

    @property
    def visible(self) -> Tensor:
        """[B, H, Lq, Lk], from the mask's definition."""
        batch, rows, heads, _ = self.query.shape
        keys, kv_heads = self.key.shape[1:3]
        result = torch.ones(rows, keys, dtype=torch.bool)
        if self.mask.case is MaskCase.CAUSAL:
            result = result.tril()
        elif self.mask.case is MaskCase.INTERVAL:
            key = torch.arange(keys)
            low, high = (x[..., None] for x in (self.mask.low, self.mask.high))
            result = (key >= low) & (key < high)
        elif self.mask.case is MaskCase.BITMAP:
            result = self.mask.seen
        result = result.expand(batch, heads, rows, keys)
        if self.mask.key_seen is not None:
            real = self.mask.key_seen.expand(batch, kv_heads, keys)
            result = result & real.repeat_interleave(heads // kv_heads, 1)[:, :, None]
        return result

    @property
    def options(self) -> dict[str, Any]:
        return {"mask": self.mask, "scale": self.scale, "dropout": self.dropout}


NAMES = ("out", "lse", "grad_query", "grad_key", "grad_value")


def check(case: Case, results: dict[str, Tensor]) -> None:
    """The accuracy rule, for whatever is in `results`."""
    inputs = (case.query, case.key, case.value)
    given = {"scale": case.scale, "grad_out": case.grad_out}
    if case.dropout is None:
        testing.assert_exact(results, testing.yardstick(*inputs, case.visible.long(), **given))
    else:
        testing.assert_exact(results, dropped_yardstick(case))


def dropped_yardstick(case: Case) -> testing.Yardstick:
    """Dropout said without dropout: every query has values of its own, times what it keeps.

    `1 / (1 - p)` must be a power of two, so that this product is exact.
    """
    q, k, v, dO = case.query, case.key, case.value, case.grad_out
    batch, rows, heads, _ = q.shape
    keys, group = k.shape[1], heads // k.shape[2]
    M = case.dropout.kept().transpose(1, 2).transpose(2, 3)[..., None] / (1 - case.dropout.p)
    K, V = (
        x.repeat_interleave(group, 2)[:, None].expand(-1, rows, -1, -1, -1) for x in (k, v)
    )  # [B, Lq, Lk, H, D]
    exact = testing.yardstick(
        q.reshape(-1, 1, *q.shape[2:]),
        K.flatten(0, 1),
        (V * M.to(v.dtype)).flatten(0, 1),
        case.visible.transpose(1, 2).reshape(-1, heads, 1, keys).long(),
        scale=case.scale,
        grad_out=dO.reshape(-1, 1, *dO.shape[2:]),
    )

    def together(x: testing.ReferenceResult) -> testing.ReferenceResult:
        def summed(grad: Tensor, share: Tensor | float) -> Tensor:
            grad = grad.unflatten(0, (batch, rows)) * share
            return grad.sum(1).unflatten(2, (-1, group)).sum(3)

        return testing.ReferenceResult(
            x.out.reshape(dO.shape),
            x.lse.reshape(batch, rows, heads).transpose(1, 2),
            x.grad_query.reshape(q.shape),
            summed(x.grad_key, 1.0),
            summed(x.grad_value, M),
        )

    return replace(
        exact,
        formula=together(exact.formula),
        plain=together(exact.plain),
        absolute=together(exact.absolute),
        terms=together(exact.terms),
    )


def run(backend: AttentionBackend, case: Case) -> dict[str, Tensor]:
    """Forward and backward; a row without keys has `lse = +inf` in the backward."""
    out, lse = backend.forward(case.query, case.key, case.value, **case.options)
    final = lse.masked_fill(lse == -torch.inf, torch.inf)
    grads = backend.backward(
        case.grad_out, case.query, case.key, case.value, out, final, **case.options
    )
    return dict(zip(NAMES, (out, lse, *grads), strict=True))


def strided(x: Tensor, style: str) -> Tensor:
    """`x` in another memory layout, last stride 1; what lies between its rows is NaN."""
    _, length, heads, width = x.shape
    if style == "contiguous":
        return x
    if style == "heads first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if style == "overlapping tiles":  # other values: each tile shares rows with the next one
        tile = (length + 1) // 2 * heads * width
        return x.contiguous().as_strided(x.shape, (tile, heads * width, width, 1))
    row, tile = 2 * heads * width, 3 * length * heads * width + 7
    if style == "gaps":
        strides = (tile, row, width, 1)
    else:  # each head one row and one head further on, as the heads of a dilated branch lie
        strides = (tile * heads, row * heads, row + width, 1)
    size = sum((n - 1) * s for n, s in zip(x.shape, strides, strict=True)) + 1
    view = torch.full((size,), torch.nan, dtype=x.dtype).as_strided(x.shape, strides)
    return view.copy_(x)


STYLES = ("contiguous", "heads first", "gaps", "diagonal heads", "overlapping tiles")
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
    padding: str | None = None,
    dropout_p: float = 0.0,
    dtype: torch.dtype = torch.float32,
    style: str = "contiguous",
    largest_score: float = 3.0,
    seed: int = 0,
) -> Case:
    """Normal inputs; `largest_score` is about the largest score.

    `bounds`: the axes along which an interval or a bitmap varies; `padding`: those along which
    padded keys do, None for no padding.
    """
    generator = torch.Generator().manual_seed(seed)
    heads = kv_heads * group
    keys = rows if mask is MaskCase.CAUSAL else keys
    sizes = {"B": batch, "H": heads, "K": kv_heads, "L": rows}

    def normal(length: int, heads: int, width: int) -> Tensor:
        x = torch.randn(batch, length, heads, width, generator=generator, dtype=torch.float64)
        return strided(x.to(dtype), style)

    def shape(axes: str, varying: str) -> tuple[int, ...]:
        every = tuple(sizes[axis] if axis in varying else 1 for axis in axes)
        return every if set(varying) & set(axes[:-1]) else every[-1:]

    def bound() -> Tensor:
        shaped = shape("BHL", bounds)
        return torch.randint(0, keys + 1, shaped, generator=generator).sort(-1).values

    def random_bits(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < torch.rand((), generator=generator)

    def positions(length: int, axes: str) -> Tensor:
        shaped = (*(sizes[axis] if axis in axes else 1 for axis in "BH"), length)
        return torch.randint(0, 2**40, shaped, generator=generator)

    interval = mask is MaskCase.INTERVAL
    low, high = (bound() // 2, bound()) if interval else (None, None)
    seen = random_bits(*shape("BHL", bounds), keys) if mask is MaskCase.BITMAP else None
    real = None if padding is None else random_bits(*shape("BK", padding), keys)
    if real is not None and padding == "":
        real = real[0]
    dropout = Dropout(
        dropout_p,
        seed,
        torch.randint(0, 9, (batch,), generator=generator),
        torch.randint(0, 9, (heads,), generator=generator),
        positions(rows, bounds),
        positions(keys, bounds),
    )
    return Case(
        normal(rows, heads, head_dim),
        normal(keys, kv_heads, head_dim),
        normal(keys, kv_heads, value_head_dim),
        normal(rows, heads, value_head_dim),
        Mask(mask, low, high, seen, real),
        scale=largest_score / (3 * head_dim**0.5),
        dropout=dropout if dropout_p else None,
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
    bounds=st.sampled_from(["L", "BL", "HL", "BHL", "B", "H"]),
    padding=st.sampled_from([None, None, "", "B", "K", "BK"]),
    dropout_p=st.sampled_from([0.0, 0.0, 0.5, 0.75]),
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
        patch.setattr(chunks, "ROWS", 8)
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


def keys_of(case: Case, keys: slice) -> Case:
    """The same queries with some of the keys."""
    mask, here = case.mask, (slice(None), keys)
    real = None if mask.key_seen is None else mask.key_seen[..., keys]
    if mask.case is MaskCase.CAUSAL:
        length = case.query.shape[1]
        mask = Mask(MaskCase.INTERVAL, torch.zeros(1).long(), torch.arange(1, length + 1))
    if mask.case is MaskCase.INTERVAL:
        mask = Mask(MaskCase.INTERVAL, mask.low - keys.start, mask.high - keys.start)
    if mask.case is MaskCase.BITMAP:
        mask = Mask(MaskCase.BITMAP, seen=mask.seen[..., keys])
    dropout = case.dropout
    if dropout is not None:
        dropout = replace(dropout, key_positions=dropout.key_positions[..., keys])
    return replace(
        case,
        key=case.key[here],
        value=case.value[here],
        mask=replace(mask, key_seen=real),
        dropout=dropout,
    )


@given(case=CASES, cuts=st.lists(st.integers(0, 70), max_size=3))
@slow_machine
def test_parts_of_the_keys_merge_and_their_gradients_given_the_merged_result_add_up(
    case: Case, cuts: list[int]
) -> None:
    keys = case.key.shape[1]
    bounds = sorted({0, keys, *(cut % keys for cut in cuts)})
    parts = [keys_of(case, slice(*ends)) for ends in pairwise(bounds)]
    pieces = [BACKEND.forward(x.query, x.key, x.value, **x.options) for x in parts]
    lse = torch.stack([piece.lse.double() for piece in pieces]).logsumexp(0)
    final = lse.masked_fill(lse == -torch.inf, torch.inf)
    shares = [(piece.lse - final).exp().transpose(1, 2)[..., None] for piece in pieces]
    out = sum(piece.out * share for piece, share in zip(pieces, shares, strict=True))
    out, final = out.to(case.query.dtype), final.to(pieces[0].lse.dtype)
    grads = [
        BACKEND.backward(x.grad_out, x.query, x.key, x.value, out, final, **x.options)
        for x in parts
    ]
    check(
        case,
        {
            "out": out,
            "lse": lse,
            "grad_query": sum(grad.query for grad in grads),
            "grad_key": torch.cat([grad.key for grad in grads], 1),
            "grad_value": torch.cat([grad.value for grad in grads], 1),
        },
    )


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


def floating_operations(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("mask", [MaskCase.FULL, MaskCase.CAUSAL, MaskCase.INTERVAL])
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_no_buffer_is_quadratic_in_the_length(mask: MaskCase, dropout_p: float) -> None:
    tile = random_case(
        batch=1, rows=3000, keys=3000, kv_heads=1, head_dim=1, value_head_dim=1, mask=mask,
        padding="B", dropout_p=dropout_p,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "SCORES_PER_CHUNK", 6000)
        with torch.profiler.profile(profile_memory=True) as profile:
            run(BACKEND, tile)
    largest = max(event.self_cpu_memory_usage for event in profile.events())
    assert largest <= 6000 * 8  # bytes: the words that draw a mask are int64


@pytest.mark.parametrize("batch", [1, 5])
def test_a_window_costs_as_many_products_as_it_is_wide(batch: int) -> None:
    row, window = torch.arange(4000), 100
    tile = random_case(batch=batch, rows=4000, keys=4000, kv_heads=1, head_dim=4, value_head_dim=4)
    mask = Mask(MaskCase.INTERVAL, (row - window).clamp(min=0), row + 1)
    found = floating_operations(lambda: run(BACKEND, replace(tile, mask=mask)))
    products = 7 * 2 * 4  # 2 in the forward, 5 in the backward, of 4 multiplications and additions
    assert found <= products * batch * 4000 * (window + chunks.ROWS + 1)


def test_rows_and_keys_that_meet_nothing_cost_no_products() -> None:
    low = torch.zeros(300, dtype=torch.int64)
    high = low.clone()
    high[-10:] = 7
    tile = random_case(batch=2, rows=300, keys=300, kv_heads=1, head_dim=4, value_head_dim=4)
    mask = Mask(MaskCase.INTERVAL, low, high)
    found = floating_operations(lambda: run(BACKEND, replace(tile, mask=mask)))
    assert found <= 7 * 2 * 4 * 2 * chunks.ROWS * 7


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
    case = random_case(mask=mask, padding="B", dtype=torch.float64)
    moved = Mask(
        mask,
        *(
            x if x is None else x.cuda()
            for x in (case.mask.low, case.mask.high, case.mask.seen, case.mask.key_seen)
        ),
    )
    tensors = (x.cuda() for x in (case.query, case.key, case.value, case.grad_out))
    results = run(BACKEND, Case(*tensors, moved, case.scale))
    check(case, {name: x.cpu() for name, x in results.items()})
