"""The standard tests on every provider; how the CPU kernel is called, and its hazards guarded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.contracts import (
    CAUSAL,
    FULL,
    AttentionBackend,
    DeviceInfo,
    InvalidArgument,
    Mask,
    MaskCase,
)
from ringspan.testing import AttentionBackendSuite, assert_exact
from ringspan.testing.suites.tiles import NAMES, Operands, Tile
from ringspan.testing.suites.trial import tiles
from ringspan_sdpa import (
    SdpaCpu,
    SdpaCudnn,
    SdpaEfficient,
    SdpaEfficientBias,
    SdpaFlash,
    pieces,
)
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

torch.set_num_threads(1)

BACKEND = SdpaCpu()
CPU = DeviceInfo(type="cpu")
many_examples = settings(deadline=None, max_examples=60)


class TestSdpaCpu(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return SdpaCpu()


class TestSdpaCudnn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return SdpaCudnn()


class TestSdpaFlash(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return SdpaFlash()


class TestSdpaEfficient(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return SdpaEfficient()


class TestSdpaEfficientBias(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return SdpaEfficientBias()


def check(operands: Operands) -> None:
    """Everything that `sdpa-cpu` makes of them is exact."""
    assert_exact(operands.results(BACKEND), operands.exact())


class Calls(TorchDispatchMode):
    """The scores that the kernel is asked for, and the biases it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.scores: list[int] = []
        self.biases: list[Tensor] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            query, key = args[:2]
            self.scores.append(query.shape[:3].numel() * key.shape[2])
            if kwargs.get("attn_mask") is not None:
                self.biases.append(kwargs["attn_mask"])
        return function(*args, **kwargs)


def calls(operands: Operands) -> Calls:
    with Calls() as found:
        operands.forward(BACKEND)
    return found


@given(tile=tiles(BACKEND))
@many_examples
def test_any_cut_into_blocks_and_pieces_is_exact(tile: Tile) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ROWS", 8), ("INTERIOR", 8), ("BIAS_ELEMENTS", 40)):
            patch.setattr(pieces, name, value)
        check(tile.operands(CPU))


@st.composite
def alike(draw: st.DrawFn) -> Operands:
    """Many tiles, most of them like their neighbour, each padded at its ends."""
    batch, rows, keys = (draw(st.integers(1, most)) for most in (12, 40, 40))
    case = draw(st.sampled_from(sorted(set(MaskCase) - {MaskCase.BAND})))
    tile = Tile(batch=batch, query_length=rows, key_length=keys, mask=case, group_size=2)
    operands, keys = tile.operands(CPU), tile.keys

    def neighbours(least: int, most: int) -> Tensor:
        kinds = draw(st.lists(st.integers(least, most), min_size=1, max_size=3))
        which = draw(st.lists(st.sampled_from(kinds), min_size=batch, max_size=batch))
        return torch.tensor(sorted(which) if draw(st.booleans()) else which)[:, None, None]

    mask, row, key = operands.mask, torch.arange(rows), torch.arange(keys)
    if case is MaskCase.INTERVAL:
        low = row + neighbours(-20, 20)
        mask = Mask(case, low.clamp(min=0), (low + draw(st.integers(0, 30))).clamp(0, keys))
    if draw(st.booleans()):
        start, stop = neighbours(0, 3), neighbours(0, keys)
        mask = replace(mask, key_seen=(key >= start) & (key < stop))
    return replace(operands, mask=mask)


@given(operands=alike(), worth=st.sampled_from([1, 1000, 1 << 16]))
@many_examples
def test_tiles_that_share_a_call_are_exact(operands: Operands, worth: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ROWS", 8), ("INTERIOR", 8), ("WORTH_A_CALL", worth)):
            patch.setattr(pieces, name, value)
        check(operands)


def overlapping(x: Tensor, length: int, step: int) -> Tensor:
    """Rows of `x` `[B, N, H, D]` as the engine views windows: `[B * T, length, H, D]`."""
    batch, tokens, heads, width = x.shape
    count = (tokens - length) // step + 1
    strides = (x.stride(0), step * x.stride(1), *x.stride()[1:])
    view = x.as_strided((batch, count, length, heads, width), strides)
    return view.flatten(0, 1) if batch == 1 else view.reshape(-1, length, heads, width)


def windows(batch: int, tokens: int, window: int, dtype: str = "float32") -> Operands:
    """A causal window along a sequence: tiles of 256 rows on the keys that they see."""
    sequence = Tile(batch=batch, query_length=tokens, key_length=tokens + window, dtype=dtype)
    q, k, v, grad_out = sequence.operands(CPU).tensors
    row = torch.arange(256)
    low = row.expand(batch, tokens // 256, -1).clone()
    low[:, 0] = low[:, 0].clamp(min=window)  # nothing lies before the first tile
    q, grad_out = (overlapping(x, 256, 256) for x in (q, grad_out))
    k, v = (overlapping(x, 256 + window, 256) for x in (k, v))
    mask = Mask(MaskCase.INTERVAL, low.flatten(0, 1)[:, None], row + window + 1)
    return Operands(q, k, v, grad_out, mask, scale=0.3)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_overlapping_views_of_one_sequence_are_exact(dtype: str) -> None:
    check(windows(1, 1024, 300, dtype))


def test_windows_of_many_tiles_compute_few_scores_that_are_hidden() -> None:
    operands = windows(2, 8192, 512)
    found = calls(operands)
    assert sum(found.scores) <= (1 + pieces.ROWS / 512) * operands.multiplicity.sum()
    assert len(found.scores) <= 2 * 2 * 2  # sequences, first tile or others, blocks of rows
    assert max(bias.numel() for bias in found.biases) <= pieces.ROWS * (pieces.ROWS + 512)


@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=lambda mask: mask.case)
def test_padding_at_the_ends_of_tiles_costs_no_scores_and_real_tiles_no_bias(mask: Mask) -> None:
    tile = Tile(batch=8, query_length=512, key_length=512, kv_heads=1, mask=mask.case)
    real = torch.ones(8, 1, 512, dtype=torch.bool)
    real[1:3, :, 400:] = False
    real[5:] = False
    padded = replace(tile.operands(CPU), mask=replace(mask, key_seen=real))
    found, seen = calls(padded), padded.multiplicity.sum()
    if mask.case is MaskCase.FULL:
        assert sum(found.scores) == seen
        assert not found.biases
    else:  # a triangle in steps
        assert sum(found.scores) <= (1 + pieces.ROWS / 512) * seen
    check(padded)


def test_bitmaps_of_many_small_tiles_are_few_calls() -> None:
    tile = Tile(batch=256, query_length=64, key_length=200, mask=MaskCase.BITMAP, mask_axes="BL")
    assert len(calls(tile.operands(CPU)).scores) == 2
    assert len(calls(replace(tile, mask_axes="L").operands(CPU)).scores) == 1


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("key_padding", [False, True])
def test_a_wide_window_is_merged_from_an_interior_and_two_edges(
    dtype: str, key_padding: bool
) -> None:
    tile = Tile(batch=1, query_length=1000, key_length=1000, kv_heads=1, group_size=2, dtype=dtype)
    operands, row = tile.operands(CPU), torch.arange(1000)
    mask = Mask(MaskCase.INTERVAL, (row - 800).clamp(min=0), row + 1)
    if key_padding:
        mask = replace(mask, key_seen=row % 7 != 3)
    with Calls() as found:
        check(replace(operands, mask=mask))
    assert len(found.scores) > 1000 / pieces.ROWS
    assert (len(found.biases) < len(found.scores)) is not key_padding


def long_masks() -> Iterator[Mask]:
    row = torch.arange(20_000)
    real = torch.rand(3, 1, 20_000, generator=torch.Generator().manual_seed(0)) < 0.9
    for low, high in (
        (row * 0, row + 1),
        (row - 5000, row + 5000),
        ((row - 5000).expand(3, 2, -1), (row + torch.arange(3)[:, None, None]).expand(3, 2, -1)),
    ):
        yield Mask(MaskCase.INTERVAL, low, high)
        yield Mask(MaskCase.INTERVAL, low, high, key_seen=real)
    yield replace(FULL, key_seen=real)
    yield replace(CAUSAL, key_seen=real)
    yield Mask(MaskCase.BITMAP, seen=real[:, :, :3000, None].expand(3, 2, 3000, 2000))


@pytest.mark.parametrize("mask", list(long_masks()), ids=lambda mask: mask.case)
def test_no_bias_is_larger_than_its_bound(mask: Mask) -> None:
    rows, keys = (3000, 2000) if mask.case is MaskCase.BITMAP else (20_000, 20_000)
    q, k = (torch.empty(3, 2, length, 1) for length in (rows, keys))
    for block in pieces.blocks(mask, q, k):
        for piece in block.pieces:
            assert piece.bias is None or piece.bias.numel() <= pieces.BIAS_ELEMENTS


@pytest.mark.parametrize("mask", sorted(set(MaskCase) - {MaskCase.BAND}))
@pytest.mark.parametrize(("batch", "rows", "keys"), [(0, 4, 4), (2, 0, 4), (2, 4, 0), (2, 0, 0)])
def test_nothing_to_attend_to_is_empty_and_does_not_end_the_process(
    mask: MaskCase, batch: int, rows: int, keys: int
) -> None:
    if mask is MaskCase.CAUSAL and rows != keys:
        return
    q, k = torch.randn(batch, rows, 2, 8), torch.randn(batch, keys, 2, 8)
    bounds = (torch.zeros(rows, dtype=torch.int64),) * 2 if mask is MaskCase.INTERVAL else ()
    results = Operands(q, k, k, q, Mask(mask, *bounds), scale=1.0).results(BACKEND)
    assert results["out"].shape == q.shape
    assert (results["out"] == 0).all()
    assert (results["lse"] == -torch.inf).all()
    assert all((results[name] == 0).all() for name in NAMES[2:])


def test_a_last_stride_other_than_one_is_read_correctly() -> None:
    operands = Tile().operands(CPU)
    turned = [x.transpose(1, 3).contiguous().transpose(1, 3) for x in operands.tensors]
    assert all(x.stride(-1) != 1 for x in turned)
    check(Operands(*turned, operands.mask, operands.scale))


def test_one_value_seen_through_strides_of_zero_is_read_correctly() -> None:
    operands = Tile(key_length=33).operands(CPU)
    grad_out = torch.ones(()).expand(operands.grad_out.shape)
    key = operands.key[:, :1].expand(-1, 33, -1, -1)
    check(replace(operands, key=key, grad_out=grad_out))


def test_an_lse_with_any_strides_gives_the_same_gradients() -> None:
    operands = Tile(mask=MaskCase.CAUSAL).operands(CPU)
    out, lse = operands.forward(BACKEND)
    turned = lse.transpose(1, 2).contiguous().transpose(1, 2)
    for x, y in zip(
        operands.backward(BACKEND, out, lse.contiguous()),
        operands.backward(BACKEND, out, turned),
        strict=True,
    ):
        assert torch.equal(x, y)


def test_autocast_leaves_the_result_alone() -> None:
    operands = Tile(mask=MaskCase.INTERVAL).operands(CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = operands.results(BACKEND)
    assert_exact(results, operands.exact())
    assert results["out"].dtype == torch.float32


def test_no_graph_is_recorded() -> None:
    operands = Tile().operands(CPU)
    operands.query.requires_grad_()
    assert not any(x.requires_grad for x in operands.results(BACKEND).values())


def test_a_tensor_elsewhere_is_refused_by_name() -> None:
    x = torch.randn(1, 4, 1, 8)
    with pytest.raises(InvalidArgument, match="key: expected a tensor on cpu, got one on meta"):
        BACKEND.forward(x, x.to("meta"), x, mask=FULL, scale=1.0)


def test_mixed_dtypes_are_refused_by_name() -> None:
    x = torch.randn(1, 4, 1, 8)
    with pytest.raises(InvalidArgument, match=r"value: expected dtype torch.float32, got torch"):
        BACKEND.forward(x, x, x.double(), mask=FULL, scale=1.0)


def test_a_causal_mask_that_is_not_square_is_refused() -> None:
    x = torch.randn(1, 4, 1, 8)
    with pytest.raises(InvalidArgument, match="4 queries and 3 keys"):
        BACKEND.forward(x, x[:, :3], x[:, :3], mask=CAUSAL, scale=1.0)


def test_full_and_causal_tiles_are_not_copied() -> None:
    """The output lies as the query does, and no allocation is a copy of an input."""
    x = torch.randn(1, 256, 4, 16)
    assert BACKEND.forward(x, x, x, mask=CAUSAL, scale=1.0).out.is_contiguous()


def test_the_probe_runs_the_kernel_or_says_why_not() -> None:
    found = BACKEND.probe(CPU)
    assert found.usable
    assert found.version == torch.__version__
    assert "supported: cpu" in BACKEND.probe(DeviceInfo(type="cuda")).reason
