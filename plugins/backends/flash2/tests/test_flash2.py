"""The adapter of flash-attn 2 on a stand-in, and on the kernel where there is a GPU."""

from __future__ import annotations

import importlib.metadata
import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import ClassVar

import pytest
import torch
from ringspan.contracts import (
    CAUSAL,
    FULL,
    AttentionBackend,
    Availability,
    Capabilities,
    DeviceInfo,
    InvalidArgument,
    Lengths,
    Mask,
    MaskCase,
    Problem,
)
from ringspan.contracts.adapters import cuda
from ringspan.contracts.adapters.flash import calls
from ringspan.testing import AttentionBackendSuite, assert_exact
from ringspan.testing.suites.tiles import Operands, Tile
from ringspan_flash2 import Flash2, ringspan_attention_backends
from torch import Tensor

CPU = DeviceInfo(type="cpu")


class OnCpu(Flash2):
    """The adapter with CPU tensors let through to the stand-in."""

    capabilities: ClassVar[Capabilities] = replace(
        Flash2.capabilities, devices=frozenset({"cpu"}), compute_capabilities=None
    )

    def probe(self, device: DeviceInfo) -> Availability:
        if device.type != "cpu":
            return Availability.no(f"device {device.type} (supported: cpu)")
        return Availability.yes()

    def proof(self, device: DeviceInfo) -> Availability:
        return Availability.yes()


@pytest.mark.usefixtures("flash_attn")
class TestFlash2OnAStandIn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return OnCpu()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestFlash2(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Flash2()


def operands(tile: Tile, mask: Mask | None = None) -> Operands:
    drawn = tile.operands(CPU)
    return drawn if mask is None else replace(drawn, mask=mask)


def check(drawn: Operands) -> None:
    assert_exact(drawn.results(OnCpu()), drawn.exact())


TILE = Tile(batch=2, kv_heads=2, dtype="bfloat16", query_length=17, key_length=17)


@pytest.mark.usefixtures("any_version")
@pytest.mark.parametrize("strides", ["contiguous", "gaps"])
@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize(
    "mask", [FULL, CAUSAL, Mask(MaskCase.BAND, left=4, right=2)], ids=lambda mask: mask.case
)
def test_every_version_computes_every_mask(mask: Mask, group_size: int, strides: str) -> None:
    check(operands(replace(TILE, group_size=group_size, strides=strides), mask))


@pytest.mark.usefixtures("flash_attn")
@pytest.mark.parametrize("more", [(0, 0), (1, 0), (0, 1), (3, 2), (11, 13), (60, 60)])
@pytest.mark.parametrize("lengths", [(7, 7), (5, 12), (12, 5), (11, 10), (30, 5), (1, 9), (9, 1)])
def test_bands_are_exact_with_any_number_of_queries_and_keys(
    lengths: tuple[int, int], more: tuple[int, int]
) -> None:
    queries, keys = lengths
    left, right = max(0, queries - keys) + more[0], max(0, keys - queries) + more[1]
    mask = Mask(MaskCase.BAND, left=left, right=right)
    check(operands(replace(TILE, query_length=queries, key_length=keys), mask))


@pytest.mark.parametrize("queries", range(1, 10))
def test_every_small_band_is_what_the_kernel_shows(
    queries: int, kernel_sees: Callable[..., Tensor]
) -> None:
    for keys, left, right in itertools.product(range(1, 10), range(12), range(12)):
        mask = Mask(MaskCase.BAND, left=left, right=right)
        if left < queries - keys or right < keys - queries:
            continue  # a query would see no key, which is no band
        found = [
            kernel_sees(len(range(queries)[call.rows]), keys, call.causal, *call.window)
            for call in calls(mask, queries, keys)
        ]
        row, key = torch.arange(queries)[:, None], torch.arange(keys)
        assert torch.equal(torch.cat(found), (row - left <= key) & (key <= row + right))


def ragged(*tiles: tuple[int, int]) -> Lengths:
    queries, keys = (torch.tensor([0, *(tile[side] for tile in tiles)]) for side in (0, 1))
    return Lengths(
        queries.cumsum(0).int(), keys.cumsum(0).int(), int(queries.max()), int(keys.max())
    )


def check_ragged(case: MaskCase, lengths: Lengths) -> None:
    rows, keys = int(lengths.query_bounds[-1]), int(lengths.key_bounds[-1])
    tile = replace(TILE, batch=1, query_length=rows, key_length=keys, group_size=2)
    drawn = operands(tile, Mask(case, lengths=lengths))
    results = drawn.results(OnCpu())
    assert results["lse"].shape == (1, tile.heads, rows)
    for t in range(len(lengths.query_bounds) - 1):
        q, k = (slice(*map(int, b[t : t + 2])) for b in (lengths.query_bounds, lengths.key_bounds))
        alone = Operands(
            drawn.query[:, q], drawn.key[:, k], drawn.value[:, k], drawn.grad_out[:, q],
            Mask(case), drawn.scale,
        )  # fmt: skip
        names = {"out": q, "grad_query": q, "grad_key": k, "grad_value": k}
        found = {name: results[name][:, rows] for name, rows in names.items()}
        assert_exact(found | {"lse": results["lse"][..., q]}, alone.exact())


@pytest.mark.usefixtures("any_version")
@pytest.mark.parametrize("case", [MaskCase.FULL, MaskCase.CAUSAL])
def test_tiles_of_many_lengths_come_in_one_call(case: MaskCase) -> None:
    check_ragged(case, ragged((5, 5), (1, 1), (12, 12)))
    if case is MaskCase.FULL:
        check_ragged(case, ragged((5, 9), (1, 30), (12, 2)))


@pytest.mark.usefixtures("flash_attn")
@pytest.mark.parametrize("case", [MaskCase.FULL, MaskCase.CAUSAL])
def test_more_tiles_than_a_grid_takes_are_cut(
    case: MaskCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "LARGEST_BATCH", 2)
    check_ragged(case, ragged((5, 5), (1, 1), (7, 7), (2, 2), (3, 3)))
    check(operands(replace(TILE, batch=5), Mask(case)))


@pytest.mark.usefixtures("flash_attn")
def test_a_log_sum_exp_with_strides_reaches_the_kernel_contiguous() -> None:
    drawn = operands(replace(TILE, mask=MaskCase.CAUSAL))
    out, lse = drawn.forward(OnCpu())
    turned = lse.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    expected = drawn.backward(OnCpu(), out, lse)
    for x, y in zip(drawn.backward(OnCpu(), out, turned), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("flash_attn")
def test_results_are_in_the_dtypes_of_the_contract() -> None:
    results = operands(replace(TILE, head_dim=20, value_head_dim=33)).results(OnCpu())
    assert results["lse"].dtype == torch.float32
    assert results["out"].dtype == results["grad_query"].dtype == torch.bfloat16


@pytest.mark.usefixtures("flash_attn")
def test_tensors_that_are_not_on_a_gpu_are_refused() -> None:
    x = torch.randn(1, 4, 1, 8, dtype=torch.float16)
    with pytest.raises(InvalidArgument, match="expected a tensor on cuda"):
        Flash2().forward(x, x, x, mask=FULL, scale=1.0)


# Probing


GPU = DeviceInfo(type="cuda", index=0, compute_capability=(8, 0))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as far as a probe asks before it calls the kernel."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: (8, 0))
    monkeypatch.setattr(torch.version, "hip", None)


def listed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """What pip lists for flash-attn."""

    def answer(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr("ringspan.contracts.adapters.package.importlib.metadata.version", answer)


def reason() -> str:
    found = Flash2().probe(GPU)
    found = Flash2().proof(GPU) if found.usable else found
    assert not found.usable
    return found.reason


def test_importing_the_plugin_imports_no_kernel() -> None:
    if not torch.cuda.is_available():
        assert "flash_attn" not in sys.modules
    assert [x.name for x in ringspan_attention_backends()] == ["flash2"]


@pytest.mark.usefixtures("gpu")
def test_it_is_not_usable_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    monkeypatch.delitem(sys.modules, "flash_attn.flash_attn_interface", raising=False)
    found = Flash2().probe(GPU)
    assert found.reason == "flash-attn is not installed"
    assert "pip install" in found.remedy


@pytest.mark.usefixtures("gpu", "flash_attn")
@pytest.mark.parametrize("version", ["2.5.9.post1", "1.0.9", "3.0.0", "3.0.0b1"])
def test_other_versions_are_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, version)
    assert reason() == f"flash-attn {version} (supported: >=2.6,<3)"


@pytest.mark.usefixtures("gpu")
def test_a_build_for_another_torch_is_a_reason_and_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed(monkeypatch, "2.8.3")

    def broken(name: str) -> ModuleType:
        raise ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c104")

    monkeypatch.setattr("ringspan.contracts.adapters.package.importlib.import_module", broken)
    assert "cannot be imported: flash_attn_2_cuda.so: undefined symbol" in reason()


@pytest.mark.usefixtures("gpu")
def test_a_function_without_a_parameter_that_is_passed_is_a_reason(
    any_version: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_softcap(
        q, k, v, dropout_p, softmax_scale, causal, window_size, alibi_slopes, return_softmax
    ): ...

    monkeypatch.setattr(any_version, "_flash_attn_forward", without_softcap)
    assert "_flash_attn_forward of flash-attn" in reason()
    assert reason().endswith("takes no softcap")
    monkeypatch.delattr(any_version, "_flash_attn_forward")
    assert reason().endswith("has no _flash_attn_forward")


@pytest.mark.usefixtures("gpu")
def test_a_function_without_a_window_is_a_reason(
    flash_attn: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def windowless(
        q, k, v, dropout_p, softmax_scale, causal, softcap, alibi_slopes, return_softmax
    ): ...

    monkeypatch.setattr(flash_attn, "_flash_attn_forward", windowless)
    assert reason().endswith("takes no window")


@pytest.mark.usefixtures("gpu", "flash_attn")
@pytest.mark.parametrize("capability", [(7, 5), (13, 0)])
def test_other_gpus_are_a_reason(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
    major, minor = capability
    assert reason() == f"compute capability {major}.{minor} (supported: 8.0..12.1)"


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_not_there_is_a_reason() -> None:
    assert Flash2().probe(DeviceInfo(type="cuda", index=7)).reason == "CUDA device 7 (there: 0..0)"


@pytest.mark.usefixtures("gpu", "flash_attn")
def test_rocm_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "built for ROCm" in reason()


def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the probe's tiny call reach the stand-in."""
    monkeypatch.setattr(
        cuda, "trial", lambda backend, device, dtype: trial(OnCpu(), torch.device("cpu"), dtype)
    )


trial = cuda.trial


@pytest.mark.usefixtures("gpu", "any_version")
def test_a_kernel_that_is_right_is_usable_and_has_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_cpu(monkeypatch)
    assert Flash2().probe(GPU).usable
    found = Flash2().proof(GPU)
    assert found.usable
    assert found.version in ("2.8.3", "2.7.4.post1", "2.6.3")


@pytest.mark.usefixtures("gpu")
def test_a_kernel_that_aligns_windows_otherwise_is_found_out(
    flash_attn: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu(monkeypatch)
    right = flash_attn._flash_attn_forward

    def other(
        q, k, v, dropout_p, softmax_scale, causal, window_size_left, window_size_right, softcap,
        alibi_slopes, return_softmax,
    ):  # fmt: skip
        if window_size_left > 0:
            window_size_left += 1
        return right(q, k, v, dropout_p, softmax_scale, causal, window_size_left,
                     window_size_right, softcap, alibi_slopes, return_softmax)  # fmt: skip

    monkeypatch.setattr(flash_attn, "_flash_attn_forward", other)
    assert "a tiny call returned a wrong" in reason()
    assert "(band)" in reason()


# What is declared


def problem(capability: tuple[int, int], head_dim: int = 64, **changes: object) -> Problem:
    device = DeviceInfo(type="cuda", index=0, compute_capability=capability)
    return Problem(
        "cuda", "float16", MaskCase.BAND, head_dim, head_dim, device_info=device, **changes
    )


def test_deterministic_problems_are_served() -> None:
    assert not list(Flash2().reasons_against(problem((8, 0), deterministic=True)))


@pytest.mark.parametrize("capability", [(8, 6), (8, 9), (12, 0)])
def test_a_wide_gradient_on_a_small_gpu_is_refused(capability: tuple[int, int]) -> None:
    (found,) = Flash2().reasons_against(problem(capability, 224))
    assert "supported: 1..192" in found
    assert not list(Flash2().reasons_against(problem(capability, 224, needs_backward=False)))
    assert not list(Flash2().reasons_against(problem((9, 0), 224)))


def test_it_comes_before_cudnn_on_ampere_and_behind_it_on_hopper() -> None:
    ampere, hopper = (
        DeviceInfo(type="cuda", index=0, compute_capability=capability)
        for capability in ((8, 0), (9, 0))
    )
    assert Flash2().priority(ampere) == 350
    assert Flash2().priority(hopper) == 250
