"""The adapter of xFormers on a stand-in, and on the kernels where there is a GPU."""

from __future__ import annotations

import sys
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from ringspan.contracts import (
    CAUSAL,
    FULL,
    AttentionBackend,
    DeviceInfo,
    Mask,
    MaskCase,
    Problem,
)
from ringspan.testing import AttentionBackendSuite, CudaAdapterSuite
from ringspan.testing.stand_ins.gpus import pretend_gpu, reason_against, tried_on
from ringspan.testing.stand_ins.on_cpu import OnCpu
from ringspan.testing.stand_ins.packages import absent, listed
from ringspan.testing.suites.adapter import SMALL, assert_tile_exact
from ringspan_xformers import XFormers, ringspan_attention_backends

CPU = DeviceInfo(type="cpu")
GPU = DeviceInfo(type="cuda", index=0, compute_capability=(7, 5))


class XFormersOnCpu(OnCpu, XFormers):
    """The adapter with CPU tensors let through to the stand-in, which is an Ampere GPU."""

    def extra_reasons(self, problem: Problem) -> list[str]:
        ampere = replace(problem.device_info, compute_capability=(8, 0))
        return list(super().extra_reasons(replace(problem, device_info=ampere)))


@pytest.mark.usefixtures("xformers")
class TestXFormersOnAStandIn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return XFormersOnCpu()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestXFormers(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return XFormers()


class TestXFormersAsAnAdapter(CudaAdapterSuite):
    @pytest.fixture
    def adapter(self, xformers: ModuleType) -> XFormers:
        return XFormers()

    @pytest.fixture
    def backend(self, xformers: ModuleType) -> AttentionBackend:
        return XFormersOnCpu()


@pytest.mark.usefixtures("xformers")
@pytest.mark.parametrize("rows", [1, 31, 32, 33])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=lambda mask: mask.case)
def test_a_log_sum_exp_is_cut_and_given_back_in_any_length(
    mask: Mask, dtype: str, rows: int
) -> None:
    tile = replace(SMALL, dtype=dtype, query_length=rows, key_length=rows, group_size=3)
    found = assert_tile_exact(XFormersOnCpu(), replace(tile, mask=mask.case))
    assert found.results(XFormersOnCpu())["lse"].shape == (2, 6, rows)


@pytest.mark.usefixtures("xformers")
def test_gradients_of_shared_heads_are_summed_in_float32() -> None:
    results = replace(SMALL, group_size=4).operands(CPU).results(XFormersOnCpu())
    assert results["grad_query"].dtype == torch.bfloat16
    assert results["grad_key"].dtype == results["grad_value"].dtype == torch.float32


@pytest.mark.usefixtures("xformers")
def test_a_deterministic_gradient_comes_from_the_other_operator() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        assert_tile_exact(XFormersOnCpu(), replace(SMALL, mask=MaskCase.CAUSAL))
    finally:
        torch.use_deterministic_algorithms(False)


# Probing


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, GPU)


def reason() -> str:
    return reason_against(XFormers(), GPU)


def test_importing_the_plugin_imports_no_kernel() -> None:
    if not torch.cuda.is_available():
        assert "xformers" not in sys.modules
    assert [x.name for x in ringspan_attention_backends()] == ["xformers"]


@pytest.mark.usefixtures("gpu")
def test_it_is_not_usable_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, "xformers", None)
    absent(monkeypatch, "xformers")
    found = XFormers().probe(GPU)
    assert found.reason == "xformers is not installed"
    assert "pip install" in found.remedy


@pytest.mark.usefixtures("gpu", "xformers")
@pytest.mark.parametrize("version", ["0.0.29.post3", "0.0.9", "0.1.0"])
def test_other_versions_are_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, "xformers", version)
    assert reason() == f"xformers {version} (supported: >=0.0.30,<0.1)"


@pytest.mark.usefixtures("gpu", "xformers")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (None, "it was built without CUDA"),
        (OSError("xFormers was built for:\n  PyTorch 2.10.0+cu128"), "built for: PyTorch 2.10.0"),
    ],
)
def test_an_extension_that_cannot_be_loaded_is_a_reason(
    error: OSError | None, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = sys.modules["xformers._cpp_lib"]
    monkeypatch.setattr(library, "_built_with_cuda", False)
    monkeypatch.setattr(library, "_cpp_library_load_exception", error)
    assert reason().startswith("xformers 0.0.35 has no CUDA extension here: ")
    assert words in reason()


@pytest.mark.usefixtures("gpu")
def test_a_function_without_a_parameter_that_is_passed_is_a_reason(
    xformers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "memory_efficient_attention_backward"
    monkeypatch.setattr(xformers, name, lambda grad, output, query, key, value, attn_bias: None)
    assert reason() == f"{name} of xformers 0.0.35 takes no lse, p, scale"
    monkeypatch.delattr(xformers, name)
    assert reason() == f"xformers 0.0.35 has no {name}"


@pytest.mark.usefixtures("gpu")
def test_a_mask_that_is_gone_is_a_reason(
    xformers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(xformers.attn_bias, "LocalAttentionFromBottomRightMask")
    assert reason() == "xformers 0.0.35 has no LocalAttentionFromBottomRightMask"


@pytest.mark.usefixtures("gpu", "xformers")
@pytest.mark.parametrize("capability", [(5, 2), (13, 0)])
def test_other_gpus_are_a_reason(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, replace(GPU, compute_capability=capability))
    major, minor = capability
    assert reason() == f"compute capability {major}.{minor} (supported: 6.0..12.1)"


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the probe's tiny calls reach the stand-in."""
    tried_on(monkeypatch, XFormersOnCpu())
    empty = torch.empty

    def elsewhere(*shape: int, device: Any = None, **options: Any) -> torch.Tensor:
        return empty(*shape, **options)

    monkeypatch.setattr("ringspan_xformers.kernel.torch.empty", elsewhere)


@pytest.mark.usefixtures("gpu", "xformers", "on_cpu")
def test_a_kernel_that_is_right_is_usable_and_says_which_operators_it_is() -> None:
    found = XFormers().probe(GPU)
    assert found.usable
    assert found.version == "0.0.35 (fa2F@2.7.4-pt, fa2B@2.7.4-pt)"


@pytest.mark.usefixtures("gpu", "on_cpu")
def test_a_version_that_does_not_name_its_operators_is_usable(
    xformers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(xformers, "_dispatch_bw")
    found = XFormers().probe(GPU)
    assert found.usable
    assert found.version == "0.0.35 (operators not named by this version)"


@pytest.mark.usefixtures("gpu", "on_cpu")
def test_a_kernel_that_aligns_windows_otherwise_is_found_out(
    xformers: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = xformers.attn_bias.LocalAttentionFromBottomRightMask

    def other(*, window_left: int, window_right: int) -> Any:
        return right(window_left + 1, window_right)

    monkeypatch.setattr(xformers.attn_bias, "LocalAttentionFromBottomRightMask", other)
    assert "a tiny call returned a wrong" in reason()
    assert "(band)" in reason()


# What is declared


def problem(capability: tuple[int, int], **changes: Any) -> Problem:
    device = DeviceInfo(type="cuda", index=0, compute_capability=capability)
    plain = Problem("cuda", "float16", MaskCase.CAUSAL, 64, 64, device_info=device)
    return replace(plain, **changes)


@pytest.mark.parametrize(
    "served",
    [
        problem((6, 0), dtype="float32"),
        problem((7, 0)),
        problem((7, 5), deterministic=True),
        problem((8, 0), dtype="bfloat16", mask=MaskCase.BAND),
        problem((9, 0), dtype="float32", deterministic=True),
        problem((10, 0), dtype="bfloat16", mask=MaskCase.BAND),
        problem((12, 0), deterministic=True, needs_backward=False),
        problem((8, 6), dtype="float32", head_dim=256, value_head_dim=256),
        problem((8, 6), head_dim=256, value_head_dim=256, needs_backward=False),
    ],
    ids=str,
)
def test_what_some_operator_does_is_served(served: Problem) -> None:
    assert not list(XFormers().reasons_against(served))


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (problem((7, 5), dtype="bfloat16"), "dtype bfloat16 on compute capability 7.5"),
        (problem((7, 5), mask=MaskCase.BAND), "mask band on compute capability 7.5"),
        (problem((8, 0), dtype="float32", mask=MaskCase.BAND), "a band in float32"),
        (problem((8, 0), mask=MaskCase.BAND, deterministic=True), "a deterministic gradient"),
        (problem((10, 0), dtype="float32"), "attention in float32 on compute capability 10.0"),
        (problem((10, 0), deterministic=True), "a deterministic gradient of attention"),
        (problem((8, 6), head_dim=200), "a gradient with head dimension 200"),
        (problem((8, 0), mask=MaskCase.INTERVAL), "mask interval"),
        (problem((8, 0), ragged=True), "tiles of many lengths"),
        (problem((8, 0), key_padding=True), "key_padding"),
        (problem((5, 2)), "compute capability 5.2"),
    ],
    ids=str,
)
def test_what_no_operator_does_is_refused_by_name(asked: Problem, words: str) -> None:
    (found,) = XFormers().reasons_against(asked)
    assert found.startswith(words)


@pytest.mark.parametrize(
    ("capability", "priority"), [((6, 1), 90), ((7, 0), 110), ((7, 5), 110), ((8, 0), 90)]
)
def test_it_comes_first_on_volta_and_turing(capability: tuple[int, int], priority: int) -> None:
    assert XFormers().priority(problem(capability).device_info) == priority
