"""The adapter of FlashAttention 4 on a stand-in, and on the kernel where there is a GPU."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
from ringspan.contracts import (
    AttentionBackend,
    DeviceInfo,
    MaskCase,
    Problem,
)
from ringspan.testing import AttentionBackendSuite, CudaAdapterSuite
from ringspan.testing.stand_ins.gpus import pretend_gpu, reason_against, tried_on
from ringspan.testing.stand_ins.on_cpu import OnCpu
from ringspan.testing.stand_ins.packages import listed, unimportable
from ringspan.testing.suites.adapter import SMALL, assert_tile_exact
from ringspan_flash4 import Flash4, ringspan_attention_backends

GPU = DeviceInfo(type="cuda", index=0, compute_capability=(9, 0))


class Flash4OnCpu(OnCpu, Flash4):
    """The adapter with CPU tensors let through to the stand-in."""


class OnBlackwell(Flash4OnCpu):
    """The same, for a GPU with fewer widths."""

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        device = replace(problem.device_info, compute_capability=(10, 0))
        return super().extra_reasons(replace(problem, device_info=device))


@pytest.mark.usefixtures("flash4", "hopper")
class TestFlash4OnAStandInForHopper(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Flash4OnCpu()


@pytest.mark.usefixtures("flash4", "blackwell")
class TestFlash4OnAStandInForBlackwell(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return OnBlackwell()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestFlash4(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Flash4()


class TestFlash4AsAnAdapter(CudaAdapterSuite):
    @pytest.fixture
    def adapter(self, flash4: ModuleType) -> Flash4:
        return Flash4()

    @pytest.fixture
    def backend(self, flash4: ModuleType, hopper: None) -> AttentionBackend:
        return Flash4OnCpu()


@pytest.mark.parametrize(
    ("head_dims", "taken"),
    [((64, 64), 64), ((100, 33), 104), ((130, 130), 256), ((192, 128), 192), ((136, 129), 256)],
)
@pytest.mark.usefixtures("blackwell")
def test_blackwell_gets_the_widths_that_it_has(
    head_dims: tuple[int, int], taken: int, flash4: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    widths, forward = [], flash4._flash_attn_fwd

    def watched(**given: object) -> object:
        widths.append((given["q"].shape[-1], given["v"].shape[-1]))
        return forward(**given)

    monkeypatch.setattr(flash4, "_flash_attn_fwd", watched)
    head_dim, value_head_dim = head_dims
    tile = replace(SMALL, head_dim=head_dim, value_head_dim=value_head_dim)
    assert_tile_exact(Flash4OnCpu(), tile)
    assert widths == [(taken, 128 if taken == 192 else taken)]


# Probing


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, GPU)


def reason() -> str:
    return reason_against(Flash4(), GPU)


def test_importing_the_plugin_imports_no_kernel() -> None:
    if not torch.cuda.is_available():
        assert "flash_attn.cute.interface" not in sys.modules
    assert [x.name for x in ringspan_attention_backends()] == ["flash4"]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("part", ["flash_attn", "flash_attn.cute"])
def test_it_is_not_usable_where_it_is_not_installed(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, "flash-attn-4", None)
    unimportable(monkeypatch, ModuleNotFoundError(name=part))
    found = Flash4().probe(GPU)
    assert found.reason == "flash-attn-4 is not installed"
    assert "pip install" in found.remedy


@pytest.mark.usefixtures("gpu")
def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, "flash-attn-4", "4.0.0b36")
    unimportable(monkeypatch, ModuleNotFoundError(name="cutlass"))
    assert reason() == "flash_attn.cute.interface needs a module that is missing: cutlass"


@pytest.mark.usefixtures("gpu", "flash4")
@pytest.mark.parametrize("version", ["4.0.0b31", "4.0.0b4", "4.0.0b37", "4.0.0", "4.1.0"])
def test_other_versions_are_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, "flash-attn-4", version)
    assert reason() == f"flash-attn-4 {version} (supported: >=4.0.0b32,<4.0.0b37)"


@pytest.mark.usefixtures("gpu")
def test_a_function_without_a_parameter_that_is_passed_is_a_reason(
    flash4: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def changed(
        q, k, v, out, dout, softmax_lse, softmax_scale=None, causal=False, window_size_left=None,
        window_size_right=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None,
        max_seqlen_k=None, deterministic=False,
    ): ...  # fmt: skip

    monkeypatch.setattr(flash4, "_flash_attn_bwd", changed)
    assert reason() == "_flash_attn_bwd of flash-attn-4 4.0.0b36 takes no lse"
    monkeypatch.delattr(flash4, "_flash_attn_bwd")
    assert reason() == "flash-attn-4 4.0.0b36 has no _flash_attn_bwd"


@pytest.mark.usefixtures("gpu", "flash4")
@pytest.mark.parametrize("capability", [(8, 9), (12, 0)])
def test_other_gpus_are_a_reason(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, replace(GPU, compute_capability=capability))
    major, minor = capability
    assert reason() == f"compute capability {major}.{minor} (supported: 9.0..11.0)"


@pytest.mark.usefixtures("gpu", "flash4")
def test_a_kernel_that_is_right_is_usable_and_has_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried_on(monkeypatch, Flash4OnCpu())
    assert Flash4().probe(GPU).usable
    found = Flash4().proof(GPU)
    assert found.usable
    assert found.version == "4.0.0b36"


# What is declared


def problem(
    capability: tuple[int, int], head_dims: tuple[int, int] = (64, 64), **changes: object
) -> Problem:
    device = DeviceInfo(type="cuda", index=0, compute_capability=capability)
    full = Problem("cuda", "float16", MaskCase.FULL, *head_dims, device_info=device)
    return replace(full, **changes)


@pytest.mark.parametrize(
    "changes", [{"mask": MaskCase.BAND}, {"deterministic": True}], ids=lambda x: next(iter(x))
)
def test_what_the_widest_heads_lack_on_blackwell_is_refused(changes: dict[str, Any]) -> None:
    (found,) = Flash4().reasons_against(problem((10, 0), (256, 256), **changes))
    assert "head dimensions (256, 256) on compute capability 10.0" in found
    for served in (
        problem((10, 0), (256, 256)),
        problem((10, 0), (192, 128), **changes),
        problem((10, 3), (128, 128), **changes),
        problem((9, 0), (256, 256), **changes),
    ):
        assert not list(Flash4().reasons_against(served))


def test_it_comes_first() -> None:
    assert Flash4().priority(GPU) == 500
