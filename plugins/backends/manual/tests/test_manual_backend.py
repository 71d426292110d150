"""The standard tests on `manual`, and what its chunks promise."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.contracts import AttentionBackend, DeviceInfo, Mask, MaskCase, Problem
from ringspan.testing import AttentionBackendSuite, assert_exact
from ringspan.testing.suites.tiles import NAMES, Operands, Tile
from ringspan.testing.suites.trial import tiles
from ringspan_manual import Manual, chunks, ringspan_attention_backends
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

torch.set_num_threads(1)

BACKEND = Manual()
CPU = DeviceInfo(type="cpu")
many_examples = settings(deadline=None, max_examples=60)


class TestManual(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Manual()


@given(tile=tiles(BACKEND))
@many_examples
def test_any_chunking_agrees_with_the_formula(tile: Tile) -> None:
    operands = tile.operands(CPU)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "SCORES_PER_CHUNK", 300)
        patch.setattr(chunks, "ROWS", 8)
        assert_exact(operands.results(BACKEND), operands.exact())


@given(tile=tiles(BACKEND), cuts=st.lists(st.integers(0, 70), max_size=3))
@many_examples
def test_gradients_of_parts_of_the_keys_given_the_global_result_add_up(
    tile: Tile, cuts: list[int]
) -> None:
    operands = tile.operands(CPU)
    output = operands.forward(BACKEND)
    bounds = sorted({0, tile.keys, *(cut % tile.keys for cut in cuts)})
    grads = [
        keys_of(operands, slice(*ends)).backward(BACKEND, *output) for ends in pairwise(bounds)
    ]
    found = {
        "grad_query": sum(grad.query for grad in grads),
        "grad_key": torch.cat([grad.key for grad in grads], 1),
        "grad_value": torch.cat([grad.value for grad in grads], 1),
    }
    assert_exact(found, operands.exact())


def keys_of(operands: Operands, keys: slice) -> Operands:
    """The same queries with some of the keys; bounds may then lie outside of them."""
    mask, dropout = operands.mask, operands.dropout
    if mask.case is MaskCase.CAUSAL:
        past = torch.arange(1, operands.query.shape[1] + 1)
        mask = replace(mask, case=MaskCase.INTERVAL, low=torch.zeros(1).long(), high=past)
    if mask.case is MaskCase.BAND:
        queries, count = operands.query.shape[1], operands.key.shape[1]
        mask = mask.as_interval(queries, count, operands.query.device)
    if mask.case is MaskCase.INTERVAL:
        mask = replace(mask, low=mask.low - keys.start, high=mask.high - keys.start)
    if mask.case is MaskCase.BITMAP:
        mask = replace(mask, seen=mask.seen[..., keys])
    if mask.key_seen is not None:
        mask = replace(mask, key_seen=mask.key_seen[..., keys])
    if dropout is not None:
        dropout = replace(dropout, key_positions=dropout.key_positions[..., keys])
    key, value = (x[:, keys] for x in (operands.key, operands.value))
    return replace(operands, key=key, value=value, mask=mask, dropout=dropout)


def floating_operations(operands: Operands) -> int:
    with FlopCounterMode(display=False) as counter:
        operands.results(BACKEND)
    return counter.get_total_flops()


def products(rows: int, keys: int, width: int) -> int:
    """Multiplications and additions of the 2 products of a forward and the 5 of a backward."""
    return 7 * 2 * rows * keys * width


@pytest.mark.parametrize("batch", [1, 5])
def test_a_window_costs_as_many_products_as_it_is_wide(batch: int) -> None:
    row, window = torch.arange(4000), 100
    tile = Tile(batch, 4000, 4000, kv_heads=1, head_dim=4, value_head_dim=4).operands(CPU)
    widest = window + 1 + chunks.ROWS
    for mask in (
        Mask(MaskCase.INTERVAL, (row - window).clamp(min=0), row + 1),
        Mask(MaskCase.BAND, left=window),
    ):
        assert floating_operations(replace(tile, mask=mask)) <= products(batch * 4000, widest, 4)


def test_a_causal_tile_costs_half_the_products() -> None:
    tile = Tile(2, 1000, kv_heads=1, head_dim=4, value_head_dim=4, mask=MaskCase.CAUSAL)
    half = 500 + chunks.ROWS
    assert floating_operations(tile.operands(CPU)) <= products(2 * 1000, half, 4)


def test_rows_and_keys_that_meet_nothing_cost_no_products() -> None:
    low = torch.zeros(300, dtype=torch.int64)
    high = low.clone()
    high[-10:] = 7
    tile = Tile(2, 300, 300, kv_heads=1, head_dim=4, value_head_dim=4).operands(CPU)
    mask = Mask(MaskCase.INTERVAL, low, high)
    assert floating_operations(replace(tile, mask=mask)) <= products(2 * chunks.ROWS, 7, 4)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made, views of a mask's bitmap aside."""

    def __init__(self, mask: Mask) -> None:
        super().__init__()
        self.elements = 0
        self.given = None if mask.seen is None else mask.seen.untyped_storage().data_ptr()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() != self.given:
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("mask", sorted(MaskCase))
@pytest.mark.parametrize("dropout_p", [0.0, 0.5])
def test_no_buffer_is_quadratic_in_the_length(mask: MaskCase, dropout_p: float) -> None:
    tile = Tile(
        2, 1500, 1500, kv_heads=1, head_dim=1, value_head_dim=1, mask=mask, mask_axes="L",
        key_padding=True, dropout_p=dropout_p,
    ).operands(CPU)  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, Largest(tile.mask) as largest:
        patch.setattr(chunks, "SCORES_PER_CHUNK", 6000)
        tile.results(BACKEND)
    assert largest.elements <= 6000


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


@pytest.mark.parametrize("mask", sorted(MaskCase))
@pytest.mark.parametrize(("batch", "rows", "keys"), [(0, 4, 4), (2, 0, 4), (2, 4, 0), (2, 0, 0)])
def test_nothing_to_attend_to_is_empty(mask: MaskCase, batch: int, rows: int, keys: int) -> None:
    if mask in (MaskCase.CAUSAL, MaskCase.BAND) and rows != keys:
        return
    q, k = torch.randn(batch, rows, 2, 8), torch.randn(batch, keys, 2, 8)
    results = Operands(q, k, k, q, empty_mask(mask, rows, keys), scale=1.0).results(BACKEND)
    assert results["out"].shape == q.shape
    assert (results["out"] == 0).all()
    assert (results["lse"] == -torch.inf).all()
    assert all((results[name] == 0).all() for name in NAMES[2:])


def empty_mask(case: MaskCase, rows: int, keys: int) -> Mask:
    bound: Tensor = torch.zeros(rows, dtype=torch.int64)
    if case is MaskCase.INTERVAL:
        return Mask(case, bound, bound)
    return Mask(case, seen=torch.ones(rows, keys).bool() if case is MaskCase.BITMAP else None)


def test_it_is_offered_and_last_in_order() -> None:
    (backend,) = ringspan_attention_backends()
    assert backend.name == "manual"
    assert backend.priority(CPU) < 0


def test_the_probe_says_why_a_device_does_not_serve() -> None:
    assert BACKEND.probe(CPU).usable
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
