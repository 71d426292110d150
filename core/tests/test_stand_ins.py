"""What adapters of CUDA packages are tested with on a CPU, and that its suite catches faults."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.contracts import AttentionBackend, Capabilities, DeviceInfo, HeadDims, MaskCase
from ringspan.contracts.adapters.flash import Call, FlashKernel
from ringspan.contracts.adapters.package import KernelPackage
from ringspan.testing import CudaAdapterSuite, assert_exact, yardstick
from ringspan.testing.stand_ins.dense import attend, gradients
from ringspan.testing.stand_ins.flash import FlashFormula, Varlen
from ringspan.testing.stand_ins.gpus import pretend_gpu, reason_against, tried_on
from ringspan.testing.stand_ins.memory import by_address
from ringspan.testing.stand_ins.on_cpu import OnCpu
from ringspan.testing.stand_ins.packages import absent, install, listed, unimportable
from ringspan.testing.suites.adapter import SMALL, assert_tile_exact
from ringspan.testing.suites.tiles import NAMES

if TYPE_CHECKING:
    from torch import Tensor

CPU = DeviceInfo(type="cpu")
GPU = DeviceInfo(type="cuda", index=0, compute_capability=(9, 0))

# A package of two functions, its stand-in, and an adapter of it


def shown(queries: int, keys: int, causal: bool, left: int | None, right: int | None) -> Tensor:
    """None is no border, and the last query stands beside the last key."""
    seen = torch.ones(queries, keys, dtype=torch.bool)
    right = 0 if causal else right
    seen = seen if left is None else seen.triu(keys - queries - left)
    return seen if right is None else seen.tril(keys - queries + right)


FORMULA = FlashFormula(shown)


def window(call: Call) -> tuple[bool, int | None, int | None]:
    return call.causal, call.left, call.right


def varlen(call: Call) -> Varlen | None:
    at = call.lengths
    if at is None:
        return None
    return Varlen(at.query_bounds, at.key_bounds, at.query_longest, at.key_longest)


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, call: Call) -> tuple[Tensor, Tensor]:
    return FORMULA.forward(q, k, v, scale, window(call), varlen(call))


def backward(*tensors: Tensor, scale: float, call: Call) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x) for x in tensors[1:4])
    FORMULA.backward(*tensors, (dq, dk, dv), scale, window(call), varlen(call))
    return dq, dk, dv


FAR = KernelPackage(
    "far-kernels", "far.kernels", calls={"forward": frozenset({"q", "k", "v", "scale", "call"})}
)


class Far(FlashKernel):
    name: ClassVar[str] = "far"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        masks=frozenset({MaskCase.FULL, MaskCase.CAUSAL, MaskCase.BAND}),
        head_dims=HeadDims(1, 256),
        compute_capabilities=((8, 0), (9, 0)),
        value_head_dim_differs=True,
        gqa=True,
        ragged=True,
    )

    def missing(self) -> str:
        return FAR.missing()

    def flash_forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, call: Call, scale: float
    ) -> tuple[Tensor, Tensor]:
        found: tuple[Tensor, Tensor] = FAR.load().forward(query, key, value, scale, call)
        return found

    def flash_backward(self, *tensors: Tensor, call: Call, scale: float) -> Any:
        return FAR.load().backward(*tensors, scale=scale, call=call)


class FarOnCpu(OnCpu, Far):
    """The adapter with CPU tensors let through to the stand-in."""


@pytest.fixture
def far(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    listed(monkeypatch, "far-kernels", "1.0")
    return install(
        monkeypatch, {"far": {}, "far.kernels": {"forward": forward, "backward": backward}}
    )[1]


class TestFar(CudaAdapterSuite):
    @pytest.fixture
    def adapter(self, far: ModuleType) -> Far:
        return Far()

    @pytest.fixture
    def backend(self, far: ModuleType) -> AttentionBackend:
        return FarOnCpu()


# Faults that adapters have had


class Shifted(FarOnCpu):
    """Takes the last key for the key of the last query's number."""

    def flash_forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, call: Call, scale: float
    ) -> tuple[Tensor, Tensor]:
        off = key.shape[-3] - query.shape[-3]
        moved = call if call.left is None else replace(call, left=max(0, call.left - off))
        return super().flash_forward(query, key, value, call=moved, scale=scale)


class Turned(FarOnCpu):
    """Hands on a log-sum-exp as it came, tokens first in memory."""

    def flash_backward(self, *tensors: Tensor, call: Call, scale: float) -> Any:
        *others, lse = tensors
        turned = lse.mT.contiguous().mT
        return super().flash_backward(*others, turned, call=call, scale=scale)


@pytest.mark.usefixtures("far")
@pytest.mark.parametrize("faulty", [Shifted, Turned])
def test_a_fault_of_an_adapter_is_found(faulty: type[FarOnCpu]) -> None:
    tile = replace(SMALL, mask=MaskCase.BAND, band=(2, 1), key_length=23)
    assert_tile_exact(FarOnCpu(), tile)
    with pytest.raises(AssertionError, match="not exact"):
        assert_tile_exact(faulty(), tile)


# An adapter on a CPU


def test_an_adapter_on_a_cpu_declares_what_it_declares_elsewhere_but_its_device() -> None:
    declared = FarOnCpu.capabilities
    assert declared.devices == {"cpu"}
    assert replace(declared, devices=frozenset({"cuda"})) == replace(
        Far.capabilities, compute_capabilities=None
    )
    assert Far.capabilities.devices == {"cuda"}
    assert FarOnCpu().probe(CPU).usable
    assert FarOnCpu().proof(CPU).usable
    assert FarOnCpu().probe(GPU).reason == "device cuda (supported: cpu)"


# Packages


def test_an_installed_module_is_imported_listed_and_gone_behind_the_test() -> None:
    with pytest.MonkeyPatch.context() as patch:
        package, kernel = install(patch, {"far": {}, "far.kernels": {"answer": 42}})
        listed(patch, "far-kernels", "1.0")
        assert importlib.import_module("far.kernels") is kernel
        assert importlib.import_module("far") is package
        assert kernel.answer == 42
        assert importlib.metadata.version("far-kernels") == "1.0"
        assert importlib.metadata.version("torch")
        listed(patch, "far-kernels", None)
        with pytest.raises(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version("far-kernels")
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("far.kernels")


@pytest.mark.usefixtures("far")
def test_a_module_that_is_absent_takes_its_parts_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert FAR.missing() == ""
    listed(monkeypatch, "far-kernels", None)
    absent(monkeypatch, "far")
    assert FAR.missing() == "far-kernels is not installed"


@pytest.mark.usefixtures("far")
def test_a_module_that_cannot_be_imported_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    unimportable(monkeypatch, ImportError("undefined symbol"))
    assert FAR.missing() == "far.kernels cannot be imported: undefined symbol"


# GPUs


@pytest.mark.usefixtures("far")
def test_a_probe_and_a_proof_run_without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_gpu(monkeypatch, GPU)
    tried_on(monkeypatch, FarOnCpu())
    assert Far().probe(GPU).usable
    assert Far().proof(GPU).usable
    with pytest.raises(AssertionError, match="far is usable"):
        reason_against(Far(), GPU)
    tried_on(monkeypatch, Shifted())
    assert "a tiny call returned a wrong out" in reason_against(Far(), GPU)
    pretend_gpu(monkeypatch, replace(GPU, compute_capability=(7, 5)))
    assert reason_against(Far(), GPU) == "compute capability 7.5 (supported: 8.0..9.0)"


# The formula


def drawn(seed: int, queries: int, keys: int, group: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = ((queries, 2 * group, 8), (keys, 2, 8), (keys, 2, 5), (queries, 2 * group, 5))
    return [torch.randn(2, *shape, generator=draw, dtype=torch.float64) for shape in shapes]


@given(
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 3)), seed=st.integers(0, 9)
)
def test_outputs_and_gradients_are_those_of_the_formula(
    sizes: tuple[int, int, int], seed: int
) -> None:
    q, k, v, grad_out = drawn(seed, *sizes)
    seen = torch.rand(sizes[:2], generator=torch.Generator().manual_seed(seed)) < 0.6
    out, lse = attend(q, k, v, seen, 0.3)
    final = lse.masked_fill(lse == -torch.inf, torch.inf)
    results = (out, lse, *gradients(grad_out, q, k, v, out, final, seen, 0.3))
    exact = yardstick(q, k, v, seen.long(), scale=0.3, grad_out=grad_out)
    assert_exact(dict(zip(NAMES, results, strict=True)), exact)


def test_what_is_read_by_its_address_ignores_strides() -> None:
    x = torch.arange(12).reshape(3, 4)
    assert torch.equal(by_address(x.T, (3, 4)), x)
    assert torch.equal(by_address(x[1:], (2, 2)), torch.tensor([[4, 5], [6, 7]]))


def test_rows_of_no_tile_and_rows_without_keys_are_told_apart() -> None:
    formula = replace(FORMULA, unseen=torch.inf)
    x = torch.randn(7, 2, 8, dtype=torch.float16)
    rows, keys = (torch.tensor(x, dtype=torch.int32) for x in ([0, 3, 5], [0, 2, 4]))
    out, lse = formula.forward(x, x, x, 0.5, (True, None, None), Varlen(rows, keys, 3, 2))
    assert (lse[:, 0] == torch.inf).all()
    assert (out[0] == 0).all()
    assert lse[:, 1:5].isfinite().all()
    assert out[5:].isnan().all()
    assert lse[:, 5:].isnan().all()


@pytest.mark.parametrize(
    "wrong",
    [
        torch.randn(1, 4, 2, 8),
        torch.randn(1, 4, 2, 12).half(),
        torch.randn(1, 4, 2, 264).half(),
        torch.randn(1, 4, 2, 16).half()[..., ::2],
    ],
    ids=["dtype", "width", "too wide", "stride"],
)
def test_what_the_kernel_would_refuse_is_refused(wrong: Tensor) -> None:
    with pytest.raises(AssertionError):
        FORMULA.forward(wrong, wrong, wrong, 0.5, (False, None, None))


def test_borders_are_checked_as_the_kernel_takes_them() -> None:
    borders = torch.tensor([0, 3, 5], dtype=torch.int32)
    assert list(Varlen(borders, borders, 3, 3).tiles()) == [(slice(0, 3),) * 2, (slice(3, 5),) * 2]
    for longest, wrong in (
        (2, borders),
        (3, borders.long()),
        (3, borders.repeat_interleave(2)[::2]),
    ):
        with pytest.raises(AssertionError):
            list(Varlen(wrong, borders, longest, 3).tiles())
    assert Varlen.of(None, None, 0, 0) is None
