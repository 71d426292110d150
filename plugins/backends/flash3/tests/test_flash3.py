"""The adapter of FlashAttention 3 on a stand-in, and on the kernel where there is a GPU."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

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
from ringspan.testing.stand_ins.packages import absent, listed
from ringspan.testing.suites.adapter import SMALL
from ringspan_flash3 import Flash3, ringspan_attention_backends

GPU = DeviceInfo(type="cuda", index=0, compute_capability=(9, 0))


class Flash3OnCpu(OnCpu, Flash3):
    """The adapter with CPU tensors let through to the stand-in."""


@pytest.mark.usefixtures("flash3")
class TestFlash3OnAStandIn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Flash3OnCpu()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestFlash3(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Flash3()


class TestFlash3AsAnAdapter(CudaAdapterSuite):
    @pytest.fixture
    def adapter(self, flash3: ModuleType) -> Flash3:
        return Flash3()

    @pytest.fixture
    def backend(self, either_form: ModuleType) -> AttentionBackend:
        return Flash3OnCpu()


# Probing


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, GPU)


def reason() -> str:
    return reason_against(Flash3(), GPU)


def test_importing_the_plugin_imports_no_kernel() -> None:
    if not torch.cuda.is_available():
        assert "flash_attn_interface" not in sys.modules
    assert [x.name for x in ringspan_attention_backends()] == ["flash3"]


@pytest.mark.usefixtures("gpu")
def test_it_is_not_usable_where_it_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, "flash-attn-3", None)
    absent(monkeypatch, "flash_attn_interface")
    found = Flash3().probe(GPU)
    assert found.reason == "flash-attn-3 is not installed"
    assert "hopper" in found.remedy


@pytest.mark.usefixtures("gpu")
def test_the_placeholder_from_pypi_is_told_from_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, "flash-attn-3", "0.0.0")
    absent(monkeypatch, "flash_attn_interface")
    assert reason() == "flash-attn-3 0.0.0 holds no module flash_attn_interface"


@pytest.mark.usefixtures("gpu")
def test_an_older_module_whose_window_is_a_pair_is_a_reason(
    either_form: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    def older(
        q, k, v, k_new, v_new, qv, out, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q,
        seqused_k, max_seqlen_q, max_seqlen_k, page_table, kv_batch_idx, leftpad_k, rotary_cos,
        rotary_sin, seqlens_rotary, q_descale, k_descale, v_descale, softmax_scale, causal,
        window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
        scheduler_metadata=None, num_splits=1, pack_gqa=None, sm_margin=0,
    ): ...  # fmt: skip

    monkeypatch.setattr(either_form, "_flash_attn_forward", older)
    assert reason().endswith("takes no window_size_left, window_size_right")
    monkeypatch.delattr(either_form, "_flash_attn_forward")
    assert reason().endswith("has no _flash_attn_forward")


@pytest.mark.usefixtures("gpu", "flash3")
@pytest.mark.parametrize(
    ("flag", "what"),
    [("LOCAL", "windows"), ("VARLEN", "tiles of many lengths"), ("BACKWARD", "gradients")],
)
def test_a_build_without_what_is_needed_is_a_reason(flag: str, what: str) -> None:
    flags = sys.modules["flash_attn_config"].CONFIG["build_flags"]
    flags[f"FLASHATTENTION_DISABLE_{flag}"] = True
    assert reason() == f"flash_attn_interface is built without {what}"


@pytest.mark.usefixtures("gpu", "flash3")
def test_a_build_for_hopper_alone_is_refused_on_ampere() -> None:
    sys.modules["flash_attn_config"].CONFIG["build_flags"]["FLASHATTENTION_DISABLE_SM8x"] = True
    ampere = DeviceInfo(type="cuda", index=0, compute_capability=(8, 0))
    found = Flash3().probe(ampere)
    assert found.reason == "flash_attn_interface is built for compute capability 9.0 alone"


@pytest.mark.usefixtures("gpu", "flash3")
@pytest.mark.parametrize("capability", [(7, 5), (10, 0), (12, 0)])
def test_other_gpus_are_a_reason(
    capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_gpu(monkeypatch, replace(GPU, compute_capability=capability))
    major, minor = capability
    assert reason() == f"compute capability {major}.{minor} (supported: 8.0..9.0)"


@pytest.mark.usefixtures("gpu", "either_form")
def test_a_kernel_that_is_right_is_usable_and_has_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried_on(monkeypatch, Flash3OnCpu())
    assert Flash3().probe(GPU).usable
    found = Flash3().proof(GPU)
    assert found.usable
    assert found.version == "3.0.0b2"


# xformers has operators of the same names: torch lets only the first library define them.

LIBRARY = """
import torch
LIBRARY = torch.library.Library("{namespace}", "DEF")
"""
MODULE = (
    LIBRARY
    + """
import sys
FUNCTIONS = sys.modules["ringspan_flash3_functions"].FUNCTIONS
_flash_attn_forward = FUNCTIONS["_flash_attn_forward"]
_flash_attn_backward = FUNCTIONS["_flash_attn_backward"]
"""
)


@pytest.fixture
def both(
    flash3: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[str, str]]:
    """Two modules on disk that define operators of one namespace: the kernel and its copy."""
    namespace, copy = "ringspan_flash3_order", "ringspan_flash3_copy"
    functions = ModuleType("ringspan_flash3_functions")
    functions.FUNCTIONS = dict(vars(flash3))
    monkeypatch.setitem(sys.modules, functions.__name__, functions)
    monkeypatch.delitem(sys.modules, "flash_attn_interface")
    (tmp_path / "flash_attn_interface.py").write_text(MODULE.format(namespace=namespace))
    (tmp_path / f"{copy}.py").write_text(LIBRARY.format(namespace=namespace))
    monkeypatch.syspath_prepend(tmp_path)
    yield "flash_attn_interface", copy
    for name in ("flash_attn_interface", copy):
        module = sys.modules.pop(name, None)
        if module is not None:
            module.LIBRARY._destroy()


@pytest.mark.usefixtures("gpu")
def test_a_copy_imported_after_the_kernel_changes_no_result(
    both: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried_on(monkeypatch, Flash3OnCpu())
    tile = SMALL.operands(DeviceInfo(type="cpu"))
    assert Flash3().proof(GPU).usable
    before = tile.results(Flash3OnCpu())
    with pytest.raises(RuntimeError, match="Only a single TORCH_LIBRARY"):
        importlib.import_module(both[1])
    assert Flash3().proof(GPU).usable
    after = tile.results(Flash3OnCpu())
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.usefixtures("gpu")
def test_a_copy_imported_before_the_kernel_is_a_reason_that_says_so(
    both: tuple[str, str],
) -> None:
    importlib.import_module(both[1])
    found = Flash3().probe(GPU)
    assert not found.usable
    assert "flash_attn_interface cannot be imported: Only a single TORCH_LIBRARY" in found.reason
    assert "before xformers" in found.remedy


# What is declared


def problem(capability: tuple[int, int], head_dim: int = 64, **changes: object) -> Problem:
    device = DeviceInfo(type="cuda", index=0, compute_capability=capability)
    return Problem(
        "cuda", "float16", MaskCase.BAND, head_dim, head_dim, device_info=device, **changes
    )


def test_a_deterministic_gradient_of_the_widest_heads_is_refused() -> None:
    assert not list(Flash3().reasons_against(problem((9, 0), 192, deterministic=True)))
    (found,) = Flash3().reasons_against(problem((9, 0), 193, deterministic=True))
    assert "supported: 1..192" in found
    assert not list(Flash3().reasons_against(problem((9, 0), 256)))
    forward = problem((9, 0), 256, deterministic=True, needs_backward=False)
    assert not list(Flash3().reasons_against(forward))


def test_a_deterministic_gradient_before_hopper_is_refused() -> None:
    (found,) = Flash3().reasons_against(problem((8, 0), deterministic=True))
    assert found == "a deterministic gradient on compute capability 8.0 (supported: 9.0)"


def test_it_comes_before_cudnn_on_hopper_and_behind_flash2_on_ampere() -> None:
    ampere, hopper = (
        DeviceInfo(type="cuda", index=0, compute_capability=capability)
        for capability in ((8, 0), (9, 0))
    )
    assert Flash3().priority(hopper) == 450
    assert Flash3().priority(ampere) == 340
