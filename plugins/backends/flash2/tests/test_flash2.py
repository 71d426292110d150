"""The adapter of flash-attn 2 on a stand-in, and on the kernel where there is a GPU."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from ringspan.contracts import (
    AttentionBackend,
    DeviceInfo,
    Mask,
    MaskCase,
    Problem,
)
from ringspan.contracts.adapters.flash import calls
from ringspan.testing import AttentionBackendSuite, CudaAdapterSuite
from ringspan.testing.stand_ins.gpus import pretend_gpu, reason_against, tried_on
from ringspan.testing.stand_ins.on_cpu import OnCpu
from ringspan.testing.stand_ins.packages import absent, listed, unimportable
from ringspan_flash2 import Flash2, ringspan_attention_backends
from torch import Tensor

GPU = DeviceInfo(type="cuda", index=0, compute_capability=(8, 0))


class Flash2OnCpu(OnCpu, Flash2):
    """The adapter with CPU tensors let through to the stand-in."""


@pytest.mark.usefixtures("flash_attn")
class TestFlash2OnAStandIn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Flash2OnCpu()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestFlash2(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Flash2()


class TestFlash2AsAnAdapter(CudaAdapterSuite):
    @pytest.fixture
    def adapter(self, flash_attn: ModuleType) -> Flash2:
        return Flash2()

    @pytest.fixture
    def backend(self, any_version: ModuleType) -> AttentionBackend:
        return Flash2OnCpu()


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


# Probing


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, GPU)


def reason() -> str:
    return reason_against(Flash2(), GPU)


def test_importing_the_plugin_imports_no_kernel() -> None:
    if not torch.cuda.is_available():
        assert "flash_attn" not in sys.modules
    assert [x.name for x in ringspan_attention_backends()] == ["flash2"]


@pytest.mark.usefixtures("gpu")
def test_it_is_not_usable_where_it_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, "flash-attn", None)
    absent(monkeypatch, "flash_attn")
    found = Flash2().probe(GPU)
    assert found.reason == "flash-attn is not installed"
    assert "pip install" in found.remedy


@pytest.mark.usefixtures("gpu", "flash_attn")
@pytest.mark.parametrize("version", ["2.5.9.post1", "1.0.9", "3.0.0", "3.0.0b1"])
def test_other_versions_are_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, "flash-attn", version)
    assert reason() == f"flash-attn {version} (supported: >=2.6,<3)"


@pytest.mark.usefixtures("gpu")
def test_a_build_for_another_torch_is_a_reason_and_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    listed(monkeypatch, "flash-attn", "2.8.3")
    unimportable(monkeypatch, ImportError("flash_attn_2_cuda.so: undefined symbol: _ZN3c104"))
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
    pretend_gpu(monkeypatch, replace(GPU, compute_capability=capability))
    major, minor = capability
    assert reason() == f"compute capability {major}.{minor} (supported: 8.0..12.1)"


@pytest.mark.usefixtures("gpu", "any_version")
def test_a_kernel_that_is_right_is_usable_and_has_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried_on(monkeypatch, Flash2OnCpu())
    assert Flash2().probe(GPU).usable
    found = Flash2().proof(GPU)
    assert found.usable
    assert found.version in ("2.8.3", "2.7.4.post1", "2.6.3")


@pytest.mark.usefixtures("gpu")
def test_a_kernel_that_aligns_windows_otherwise_is_found_out(
    flash_attn: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried_on(monkeypatch, Flash2OnCpu())
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
