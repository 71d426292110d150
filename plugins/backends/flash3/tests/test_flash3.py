"""The adapter of FlashAttention 3 on a stand-in, and on the kernel where there is a GPU."""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
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
from ringspan.testing import AttentionBackendSuite, assert_exact
from ringspan.testing.suites.tiles import Operands, Tile
from ringspan_flash3 import Flash3, ringspan_attention_backends

CPU = DeviceInfo(type="cpu")


class OnCpu(Flash3):
    """The adapter with CPU tensors let through to the stand-in."""

    capabilities: ClassVar[Capabilities] = replace(
        Flash3.capabilities, devices=frozenset({"cpu"}), compute_capabilities=None
    )

    def probe(self, device: DeviceInfo) -> Availability:
        if device.type != "cpu":
            return Availability.no(f"device {device.type} (supported: cpu)")
        return Availability.yes()

    def proof(self, device: DeviceInfo) -> Availability:
        return Availability.yes()


@pytest.mark.usefixtures("flash3")
class TestFlash3OnAStandIn(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return OnCpu()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
class TestFlash3(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Flash3()


def operands(tile: Tile, mask: Mask | None = None) -> Operands:
    drawn = tile.operands(CPU)
    return drawn if mask is None else replace(drawn, mask=mask)


def check(drawn: Operands) -> None:
    assert_exact(drawn.results(OnCpu()), drawn.exact())


TILE = Tile(batch=2, kv_heads=2, dtype="bfloat16", query_length=17, key_length=17)


@pytest.mark.usefixtures("either_form")
@pytest.mark.parametrize("strides", ["contiguous", "gaps"])
@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize(
    "mask", [FULL, CAUSAL, Mask(MaskCase.BAND, left=4, right=2)], ids=lambda mask: mask.case
)
def test_every_form_computes_every_mask(mask: Mask, group_size: int, strides: str) -> None:
    check(operands(replace(TILE, group_size=group_size, strides=strides), mask))


@pytest.mark.usefixtures("flash3")
@pytest.mark.parametrize("more", [(0, 0), (1, 0), (0, 1), (3, 2), (11, 13), (60, 60)])
@pytest.mark.parametrize("lengths", [(7, 7), (5, 12), (12, 5), (11, 10), (30, 5), (1, 9), (9, 1)])
def test_bands_are_exact_with_any_number_of_queries_and_keys(
    lengths: tuple[int, int], more: tuple[int, int]
) -> None:
    queries, keys = lengths
    left, right = max(0, queries - keys) + more[0], max(0, keys - queries) + more[1]
    mask = Mask(MaskCase.BAND, left=left, right=right)
    check(operands(replace(TILE, query_length=queries, key_length=keys), mask))


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


@pytest.mark.usefixtures("either_form")
@pytest.mark.parametrize("case", [MaskCase.FULL, MaskCase.CAUSAL])
def test_tiles_of_many_lengths_come_in_one_call(case: MaskCase) -> None:
    check_ragged(case, ragged((5, 5), (1, 1), (12, 12)))
    if case is MaskCase.FULL:
        check_ragged(case, ragged((5, 9), (1, 30), (12, 2)))


@pytest.mark.usefixtures("flash3")
@pytest.mark.parametrize("case", [MaskCase.FULL, MaskCase.CAUSAL])
def test_more_tiles_than_a_grid_takes_are_cut(
    case: MaskCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "LARGEST_BATCH", 2)
    check_ragged(case, ragged((5, 5), (1, 1), (7, 7), (2, 2), (3, 3)))
    check(operands(replace(TILE, batch=5), Mask(case)))


@pytest.mark.usefixtures("flash3")
def test_a_log_sum_exp_with_strides_reaches_the_kernel_contiguous() -> None:
    drawn = operands(replace(TILE, mask=MaskCase.CAUSAL))
    out, lse = drawn.forward(OnCpu())
    turned = lse.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    expected = drawn.backward(OnCpu(), out, lse)
    for x, y in zip(drawn.backward(OnCpu(), out, turned), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("flash3")
def test_results_are_in_the_dtypes_of_the_contract() -> None:
    results = operands(replace(TILE, head_dim=20, value_head_dim=33)).results(OnCpu())
    assert results["lse"].dtype == torch.float32
    assert results["out"].dtype == results["grad_query"].dtype == torch.bfloat16


@pytest.mark.usefixtures("flash3")
def test_tensors_that_are_not_on_a_gpu_are_refused() -> None:
    x = torch.randn(1, 4, 1, 8, dtype=torch.float16)
    with pytest.raises(InvalidArgument, match="expected a tensor on cuda"):
        Flash3().forward(x, x, x, mask=FULL, scale=1.0)


# Probing


GPU = DeviceInfo(type="cuda", index=0, compute_capability=(9, 0))


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as far as a probe asks before it calls the kernel."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)


def listed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """What pip lists for flash-attn-3."""

    def answer(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr("ringspan.contracts.adapters.package.importlib.metadata.version", answer)


def reason() -> str:
    found = Flash3().probe(GPU)
    found = Flash3().proof(GPU) if found.usable else found
    assert not found.usable
    return found.reason


def test_importing_the_plugin_imports_no_kernel() -> None:
    if not torch.cuda.is_available():
        assert "flash_attn_interface" not in sys.modules
    assert [x.name for x in ringspan_attention_backends()] == ["flash3"]


@pytest.mark.usefixtures("gpu")
def test_it_is_not_usable_where_it_is_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, None)
    monkeypatch.delitem(sys.modules, "flash_attn_interface", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoKernel(), *sys.meta_path])
    found = Flash3().probe(GPU)
    assert found.reason == "flash-attn-3 is not installed"
    assert "hopper" in found.remedy


class NoKernel:
    """Hides a kernel that may be installed on the machine of the tests."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> None:
        if name == "flash_attn_interface":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.usefixtures("gpu")
def test_the_placeholder_from_pypi_is_told_from_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, "0.0.0")
    monkeypatch.delitem(sys.modules, "flash_attn_interface", raising=False)
    monkeypatch.setattr(sys, "meta_path", [NoKernel(), *sys.meta_path])
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
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
    major, minor = capability
    assert reason() == f"compute capability {major}.{minor} (supported: 8.0..9.0)"


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_not_there_is_a_reason() -> None:
    assert Flash3().probe(DeviceInfo(type="cuda", index=7)).reason == "CUDA device 7 (there: 0..0)"


@pytest.mark.usefixtures("gpu", "flash3")
def test_rocm_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "built for ROCm" in reason()


trial = cuda.trial


def on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the probe's tiny call reach the stand-in."""
    monkeypatch.setattr(
        cuda, "trial", lambda backend, device, dtype: trial(OnCpu(), torch.device("cpu"), dtype)
    )


@pytest.mark.usefixtures("gpu", "either_form")
def test_a_kernel_that_is_right_is_usable_and_has_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on_cpu(monkeypatch)
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
    on_cpu(monkeypatch)
    assert Flash3().proof(GPU).usable
    before = operands(TILE).results(OnCpu())
    with pytest.raises(RuntimeError, match="Only a single TORCH_LIBRARY"):
        importlib.import_module(both[1])
    assert Flash3().proof(GPU).usable
    after = operands(TILE).results(OnCpu())
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
