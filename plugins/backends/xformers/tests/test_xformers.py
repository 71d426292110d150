"""The adapter of xFormers on a stand-in, and on the kernels where there is a GPU."""

from __future__ import annotations

import importlib.metadata
import sys
from dataclasses import replace
from types import ModuleType
from typing import Any, ClassVar

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
    Mask,
    MaskCase,
    Problem,
)
from ringspan.contracts.adapters import cuda
from ringspan.testing import AttentionBackendSuite, assert_exact
from ringspan.testing.suites.tiles import Operands, Tile
from ringspan_xformers import XFormers, ringspan_attention_backends

CPU = DeviceInfo(type="cpu")


class OnCpu(XFormers):
    """The adapter with CPU tensors let through to the stand-in, which is an Ampere GPU."""

    capabilities: ClassVar[Capabilities] = replace(
        XFormers.capabilities, devices=frozenset({"cpu"}), compute_capabilities=None
    )

    def probe(self, device: DeviceInfo) -> Availability:
        if device.type != "cpu":
            return Availability.no(f"device {device.type} (supported: cpu)")
        return Availability.yes()

    def proof(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def extra_reasons(self, problem: Problem) -> list[str]:
        ampere = replace(problem.device_info, compute_capability=(8, 0))
        return list(super().extra_reasons(replace(problem, device_info=ampere)))


@pytest.mark.usefixtures("xformers")
class TestXFormersOnAStandIn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return OnCpu()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestXFormers(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return XFormers()


TILE = Tile(batch=2, kv_heads=2, dtype="bfloat16", query_length=17, key_length=17)


def operands(tile: Tile, mask: Mask | None = None) -> Operands:
    drawn = tile.operands(CPU)
    return drawn if mask is None else replace(drawn, mask=mask)


def check(drawn: Operands) -> None:
    assert_exact(drawn.results(OnCpu()), drawn.exact())


@pytest.mark.usefixtures("xformers")
@pytest.mark.parametrize("rows", [1, 31, 32, 33])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("mask", [FULL, CAUSAL], ids=lambda mask: mask.case)
def test_a_log_sum_exp_is_cut_and_given_back_in_any_length(
    mask: Mask, dtype: str, rows: int
) -> None:
    tile = replace(TILE, dtype=dtype, query_length=rows, key_length=rows, group_size=3)
    drawn = operands(tile, mask)
    check(drawn)
    assert drawn.results(OnCpu())["lse"].shape == (2, 6, rows)


@pytest.mark.usefixtures("xformers")
@pytest.mark.parametrize("more", [(0, 0), (1, 0), (0, 1), (3, 2), (11, 13), (60, 60)])
@pytest.mark.parametrize("lengths", [(7, 7), (5, 12), (12, 5), (11, 10), (30, 5), (1, 9), (9, 1)])
def test_bands_are_exact_with_any_number_of_queries_and_keys(
    lengths: tuple[int, int], more: tuple[int, int]
) -> None:
    queries, keys = lengths
    left, right = max(0, queries - keys) + more[0], max(0, keys - queries) + more[1]
    mask = Mask(MaskCase.BAND, left=left, right=right)
    check(operands(replace(TILE, query_length=queries, key_length=keys), mask))


@pytest.mark.usefixtures("xformers")
def test_a_log_sum_exp_with_strides_reaches_the_kernel_contiguous() -> None:
    drawn = operands(replace(TILE, mask=MaskCase.CAUSAL))
    out, lse = drawn.forward(OnCpu())
    turned = lse.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    expected = drawn.backward(OnCpu(), out, lse)
    for x, y in zip(drawn.backward(OnCpu(), out, turned), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("xformers")
def test_gradients_of_shared_heads_are_summed_in_float32() -> None:
    results = operands(replace(TILE, group_size=4)).results(OnCpu())
    assert results["grad_query"].dtype == torch.bfloat16
    assert results["grad_key"].dtype == results["grad_value"].dtype == torch.float32


@pytest.mark.usefixtures("xformers")
def test_a_batch_beyond_a_grid_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LARGEST_BATCH", 2)
    check(operands(replace(TILE, batch=5), CAUSAL))


@pytest.mark.usefixtures("xformers")
def test_a_deterministic_gradient_comes_from_the_other_operator() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        check(operands(TILE, CAUSAL))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("xformers")
def test_tensors_that_are_not_on_a_gpu_are_refused() -> None:
    x = torch.randn(1, 4, 1, 8, dtype=torch.float16)
    with pytest.raises(InvalidArgument, match="expected a tensor on cuda"):
        XFormers().forward(x, x, x, mask=FULL, scale=1.0)


# Probing


GPU = DeviceInfo(type="cuda", index=0, compute_capability=(7, 5))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as far as a probe asks before it calls the kernel."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: (7, 5))
    monkeypatch.setattr(torch.version, "hip", None)


def listed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """What pip lists for xformers."""

    def answer(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr("ringspan.contracts.adapters.package.importlib.metadata.version", answer)


def reason() -> str:
    found = XFormers().probe(GPU)
    found = XFormers().proof(GPU) if found.usable else found
    assert not found.usable
    return found.reason


def test_importing_the_plugin_imports_no_kernel() -> None:
    if not torch.cuda.is_available():
        assert "xformers" not in sys.modules
    assert [x.name for x in ringspan_attention_backends()] == ["xformers"]


@pytest.mark.usefixtures("gpu")
def test_it_is_not_usable_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, None)
    monkeypatch.setitem(sys.modules, "xformers", None)
    for name in ("xformers.ops", "xformers.ops.fmha"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    found = XFormers().probe(GPU)
    assert found.reason == "xformers is not installed"
    assert "pip install" in found.remedy


@pytest.mark.usefixtures("gpu", "xformers")
@pytest.mark.parametrize("version", ["0.0.29.post3", "0.0.9", "0.1.0"])
def test_other_versions_are_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, version)
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
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
    major, minor = capability
    assert reason() == f"compute capability {major}.{minor} (supported: 6.0..12.1)"


def test_another_device_is_a_reason() -> None:
    assert XFormers().probe(CPU).reason == "device cpu (supported: cuda)"


trial = cuda.trial


@pytest.fixture
def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the probe's tiny calls reach the stand-in."""
    where = torch.device("cpu")
    monkeypatch.setattr(cuda, "trial", lambda backend, device, dtype: trial(OnCpu(), where, dtype))
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
