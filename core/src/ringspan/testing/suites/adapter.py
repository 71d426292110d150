"""The standard tests of an adapter of a CUDA package, on a CPU and a stand-in for the package.

`AttentionBackendSuite` says that what comes back is exact. These say that every build of the
package is called rightly, and what a probe answers before it calls the kernel.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from ringspan.contracts import FULL, AttentionBackend, DeviceInfo, InvalidArgument, MaskCase
from ringspan.contracts.adapters import cuda
from ringspan.contracts.adapters.cuda import CudaKernel
from ringspan.testing.accuracy import assert_exact
from ringspan.testing.stand_ins.gpus import pretend_gpu, reason_against
from ringspan.testing.suites.base import Suite
from ringspan.testing.suites.tiles import Operands, Tile
from ringspan.testing.suites.trial import Trial

if TYPE_CHECKING:
    from ringspan.testing.pytest_plugin import Verdict

__all__ = ["SMALL", "CudaAdapterSuite", "assert_tile_exact"]

SMALL = Tile(batch=2, kv_heads=2, dtype="bfloat16", query_length=17, key_length=17)
"""As many queries as keys."""

CPU = DeviceInfo(type="cpu")

full_and_causal = pytest.mark.parametrize("mask", [MaskCase.FULL, MaskCase.CAUSAL], ids=str)


def assert_tile_exact(backend: AttentionBackend, tile: Tile) -> Operands:
    """Fails unless all results of `backend` on a CPU are exact; the tensors that it was given."""
    operands = tile.operands(CPU)
    assert_exact(operands.results(backend), operands.exact())
    return operands


class CudaAdapterSuite(Suite, published=True):
    """Subclass it and say, in two fixtures, what is tested: on GPUs, and on the stand-in.

    A fixture with parameters, such as several builds of a package, has every test of each.

    Example:
        >>> class MineOnCpu(OnCpu, Mine):
        ...     pass
        >>> class TestMineAsAnAdapter(CudaAdapterSuite):
        ...     @pytest.fixture
        ...     def adapter(self, stand_in):
        ...         return Mine()
        ...
        ...     @pytest.fixture
        ...     def backend(self, stand_in):
        ...         return MineOnCpu()
    """

    @pytest.fixture
    def adapter(self) -> CudaKernel:
        """The adapter as it is offered, with its package installed."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `adapter`")

    @pytest.fixture
    def backend(self) -> AttentionBackend:
        """The same with CPU tensors let through; see `ringspan.testing.stand_ins.on_cpu`."""
        raise NotImplementedError(f"{type(self).__name__} needs a fixture `backend`")

    @pytest.fixture
    def gpu(self, adapter: CudaKernel, monkeypatch: pytest.MonkeyPatch) -> DeviceInfo:
        """The oldest GPU that the adapter serves, as far as torch says."""
        capability = (adapter.capabilities.compute_capabilities or ((9, 0),))[0]
        device = DeviceInfo(type="cuda", index=0, compute_capability=capability)
        pretend_gpu(monkeypatch, device)
        return device

    @pytest.fixture
    def trial(self, backend: AttentionBackend, ringspan_verdict: Verdict) -> Trial:
        """The stand-in on a CPU."""
        return Trial(backend, CPU, ringspan_verdict)

    @pytest.fixture
    def small(self, trial: Trial) -> Tile:
        """A tile that the adapter serves; 16 bits are all that many kernels take."""
        wishes = (replace(SMALL, dtype=dtype) for dtype in ("bfloat16", "float16", "float32"))
        accepted = next((tile for tile in wishes if not trial.reasons(tile)), None)
        assert accepted, f"it refuses every dtype: {trial.reasons(SMALL)}"
        return accepted

    # What the package is called with

    @pytest.mark.parametrize("strides", ["contiguous", "gaps"])
    @pytest.mark.parametrize("group_size", [1, 3])
    @pytest.mark.parametrize("mask", [MaskCase.FULL, MaskCase.CAUSAL, MaskCase.BAND], ids=str)
    def test_every_build_computes_every_mask(
        self, trial: Trial, small: Tile, mask: MaskCase, group_size: int, strides: str
    ) -> None:
        """With heads of their own and shared ones."""
        tile = replace(small, mask=mask, band=(4, 2), group_size=group_size, strides=strides)
        trial.exact_or_refused(tile)

    @pytest.mark.parametrize("more", [(0, 0), (1, 0), (0, 1), (3, 2), (11, 13), (60, 60)])
    @pytest.mark.parametrize(
        "lengths", [(7, 7), (5, 12), (12, 5), (11, 10), (30, 5), (1, 9), (9, 1)]
    )
    def test_bands_are_exact_with_any_number_of_queries_and_keys(
        self, trial: Trial, small: Tile, lengths: tuple[int, int], more: tuple[int, int]
    ) -> None:
        """Packages disagree on where a window lies, and on which one is none."""
        queries, keys = lengths
        band = replace(small, mask=MaskCase.BAND, band=more)
        trial.exact_or_refused(replace(band, query_length=queries, key_length=keys))

    @pytest.mark.parametrize(
        ("mask", "tiles"),
        [
            (MaskCase.CAUSAL, ((5, 5), (1, 1), (12, 12))),
            (MaskCase.FULL, ((5, 5), (1, 1), (12, 12))),
            (MaskCase.FULL, ((5, 9), (1, 30), (12, 2))),
        ],
        ids=str,
    )
    def test_tiles_of_many_lengths_come_in_one_call(
        self, trial: Trial, small: Tile, mask: MaskCase, tiles: tuple[tuple[int, int], ...]
    ) -> None:
        """None sees another's keys."""
        trial.exact_or_refused(replace(small, mask=mask, ragged=tiles, group_size=2))

    @full_and_causal
    def test_more_tiles_than_a_grid_takes_are_cut(
        self, trial: Trial, small: Tile, mask: MaskCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of one length."""
        monkeypatch.setattr(cuda, "LARGEST_BATCH", 2)
        trial.exact_or_refused(replace(small, mask=mask, batch=5))

    @full_and_causal
    def test_more_tiles_of_many_lengths_than_a_grid_takes_are_cut(
        self, trial: Trial, small: Tile, mask: MaskCase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Between tiles."""
        monkeypatch.setattr(cuda, "LARGEST_BATCH", 2)
        tiles = ((5, 5), (1, 1), (7, 7), (2, 2), (3, 3))
        trial.exact_or_refused(replace(small, mask=mask, ragged=tiles, group_size=2))

    def test_a_log_sum_exp_with_strides_reaches_the_kernel_contiguous(
        self, trial: Trial, small: Tile
    ) -> None:
        """Kernels read it by its address."""
        operands = trial.operands(replace(small, mask=MaskCase.CAUSAL))
        if operands is None:
            return
        out, lse = operands.forward(trial.backend)
        turned = lse.permute(2, 1, 0).contiguous().permute(2, 1, 0)
        expected = operands.backward(trial.backend, out, lse)
        for x, y in zip(operands.backward(trial.backend, out, turned), expected, strict=True):
            assert torch.equal(x, y)
        trial.verdict.served()

    def test_odd_widths_are_filled_up_and_results_are_in_the_dtypes_of_the_contract(
        self, trial: Trial, small: Tile
    ) -> None:
        """The log-sum-exp in float32, whatever the inputs are."""
        operands = trial.operands(replace(small, head_dim=20, value_head_dim=33))
        if operands is None:
            return
        results = operands.results(trial.backend)
        trial.exact(operands, results)
        assert results["lse"].dtype == torch.float32
        assert results["out"].dtype == results["grad_query"].dtype == operands.query.dtype

    def test_tensors_that_are_not_on_a_gpu_are_refused(self, adapter: CudaKernel) -> None:
        """The kernel would read memory that is not its own."""
        x = torch.randn(1, 4, 1, 8, dtype=torch.float16)
        with pytest.raises(InvalidArgument, match="expected a tensor on cuda"):
            adapter.forward(x, x, x, mask=FULL, scale=1.0)

    # What a probe says

    def test_another_device_is_a_reason(self, adapter: CudaKernel) -> None:
        """In the words of the capabilities."""
        cpu = DeviceInfo(type="cpu")
        assert reason_against(adapter, cpu) == "device cpu (supported: cuda)"

    def test_a_gpu_that_is_not_there_is_a_reason(
        self, adapter: CudaKernel, gpu: DeviceInfo
    ) -> None:
        """Before anything is asked of it."""
        other = replace(gpu, index=7)
        assert reason_against(adapter, other) == "CUDA device 7 (there: 0..0)"

    def test_rocm_is_a_reason(
        self, adapter: CudaKernel, gpu: DeviceInfo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Torch calls those GPUs `cuda` too."""
        monkeypatch.setattr(torch.version, "hip", "6.4")
        assert "built for ROCm" in reason_against(adapter, gpu)
