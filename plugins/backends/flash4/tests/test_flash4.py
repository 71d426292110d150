"""The adapter of FlashAttention 4 on a stand-in, and on the kernel where there is a GPU."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Iterable
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
    Lengths,
    Mask,
    MaskCase,
    Problem,
)
from ringspan.contracts.adapters import cuda
from ringspan.testing import AttentionBackendSuite, assert_exact
from ringspan.testing.suites.tiles import Operands, Tile
from ringspan_flash4 import Flash4, ringspan_attention_backends

CPU = DeviceInfo(type="cpu")


class OnCpu(Flash4):
    """The adapter with CPU tensors let through to the stand-in."""

    capabilities: ClassVar[Capabilities] = replace(
        Flash4.capabilities, devices=frozenset({"cpu"}), compute_capabilities=None
    )

    def probe(self, device: DeviceInfo) -> Availability:
        if device.type != "cpu":
            return Availability.no(f"device {device.type} (supported: cpu)")
        return Availability.yes()

    def proof(self, device: DeviceInfo) -> Availability:
        return Availability.yes()


class OnBlackwell(OnCpu):
    """The same, for a GPU with fewer widths."""

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        device = replace(problem.device_info, compute_capability=(10, 0))
        return super().extra_reasons(replace(problem, device_info=device))


@pytest.mark.usefixtures("flash4", "hopper")
class TestFlash4OnAStandInForHopper(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return OnCpu()


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


def operands(tile: Tile, mask: Mask | None = None) -> Operands:
    drawn = tile.operands(CPU)
    return drawn if mask is None else replace(drawn, mask=mask)


def check(drawn: Operands) -> None:
    assert_exact(drawn.results(OnCpu()), drawn.exact())


TILE = Tile(batch=2, kv_heads=2, dtype="bfloat16", query_length=17, key_length=17)


@pytest.mark.usefixtures("flash4", "hopper")
@pytest.mark.parametrize("strides", ["contiguous", "gaps"])
@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize(
    "mask", [FULL, CAUSAL, Mask(MaskCase.BAND, left=4, right=2)], ids=lambda mask: mask.case
)
def test_it_computes_every_mask(mask: Mask, group_size: int, strides: str) -> None:
    check(operands(replace(TILE, group_size=group_size, strides=strides), mask))


@pytest.mark.usefixtures("flash4", "hopper")
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


@pytest.mark.usefixtures("flash4", "hopper")
@pytest.mark.parametrize("case", [MaskCase.FULL, MaskCase.CAUSAL])
def test_tiles_of_many_lengths_come_in_one_call(case: MaskCase) -> None:
    check_ragged(case, ragged((5, 5), (1, 1), (12, 12)))
    if case is MaskCase.FULL:
        check_ragged(case, ragged((5, 9), (1, 30), (12, 2)))


@pytest.mark.usefixtures("flash4", "hopper")
@pytest.mark.parametrize("case", [MaskCase.FULL, MaskCase.CAUSAL])
def test_more_tiles_than_a_grid_takes_are_cut(
    case: MaskCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "LARGEST_BATCH", 2)
    check_ragged(case, ragged((5, 5), (1, 1), (7, 7), (2, 2), (3, 3)))
    check(operands(replace(TILE, batch=5), Mask(case)))


@pytest.mark.usefixtures("flash4", "hopper")
def test_a_log_sum_exp_with_strides_reaches_the_kernel_contiguous() -> None:
    drawn = operands(replace(TILE, mask=MaskCase.CAUSAL))
    out, lse = drawn.forward(OnCpu())
    turned = lse.permute(2, 1, 0).contiguous().permute(2, 1, 0)
    expected = drawn.backward(OnCpu(), out, lse)
    for x, y in zip(drawn.backward(OnCpu(), out, turned), expected, strict=True):
        assert torch.equal(x, y)


@pytest.mark.usefixtures("flash4", "hopper")
def test_results_are_in_the_dtypes_of_the_contract() -> None:
    results = operands(replace(TILE, head_dim=20, value_head_dim=33)).results(OnCpu())
    assert results["lse"].dtype == torch.float32
    assert results["out"].dtype == results["grad_query"].dtype == torch.bfloat16


@pytest.mark.usefixtures("flash4", "hopper")
def test_tensors_that_are_not_on_a_gpu_are_refused() -> None:
    x = torch.randn(1, 4, 1, 8, dtype=torch.float16)
    with pytest.raises(InvalidArgument, match="expected a tensor on cuda"):
        Flash4().forward(x, x, x, mask=FULL, scale=1.0)


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
    check(operands(replace(TILE, head_dim=head_dim, value_head_dim=value_head_dim)))
    assert widths == [(taken, 128 if taken == 192 else taken)]


# Probing


GPU = DeviceInfo(type="cuda", index=0, compute_capability=(9, 0))


@pytest.fixture
def gpu(hopper: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU as far as a probe asks before it calls the kernel."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.version, "hip", None)


def listed(monkeypatch: pytest.MonkeyPatch, version: str | None) -> None:
    """What pip lists for flash-attn-4."""

    def answer(name: str) -> str:
        if version is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr("ringspan.contracts.adapters.package.importlib.metadata.version", answer)


def reason() -> str:
    found = Flash4().probe(GPU)
    found = Flash4().proof(GPU) if found.usable else found
    assert not found.usable
    return found.reason


def hide(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    """As if a module were not there."""

    def absent(name: str) -> ModuleType:
        raise ModuleNotFoundError(f"No module named {missing!r}", name=missing)

    monkeypatch.setattr("ringspan.contracts.adapters.package.importlib.import_module", absent)


def test_importing_the_plugin_imports_no_kernel() -> None:
    if not torch.cuda.is_available():
        assert "flash_attn.cute.interface" not in sys.modules
    assert [x.name for x in ringspan_attention_backends()] == ["flash4"]


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize("part", ["flash_attn", "flash_attn.cute"])
def test_it_is_not_usable_where_it_is_not_installed(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed(monkeypatch, None)
    hide(monkeypatch, part)
    found = Flash4().probe(GPU)
    assert found.reason == "flash-attn-4 is not installed"
    assert "pip install" in found.remedy


@pytest.mark.usefixtures("gpu")
def test_a_missing_compiler_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, "4.0.0b36")
    hide(monkeypatch, "cutlass")
    assert reason() == "flash_attn.cute.interface needs a module that is missing: cutlass"


@pytest.mark.usefixtures("gpu", "flash4")
@pytest.mark.parametrize("version", ["4.0.0b31", "4.0.0b4", "4.0.0b37", "4.0.0", "4.1.0"])
def test_other_versions_are_refused_by_name(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    listed(monkeypatch, version)
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
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index=0: capability)
    major, minor = capability
    assert reason() == f"compute capability {major}.{minor} (supported: 9.0..11.0)"


@pytest.mark.usefixtures("gpu")
def test_a_gpu_that_is_not_there_is_a_reason() -> None:
    assert Flash4().probe(DeviceInfo(type="cuda", index=7)).reason == "CUDA device 7 (there: 0..0)"


@pytest.mark.usefixtures("gpu", "flash4")
def test_rocm_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "built for ROCm" in reason()


trial = cuda.trial


@pytest.mark.usefixtures("gpu", "flash4")
def test_a_kernel_that_is_right_is_usable_and_has_its_version(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        cuda, "trial", lambda backend, device, dtype: trial(OnCpu(), torch.device("cpu"), dtype)
    )
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
