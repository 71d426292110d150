"""Where `triton` says that it serves, and what it says where it does not."""

from __future__ import annotations

import pytest
import torch
from ringspan.contracts import DeviceInfo, MaskCase, Problem, Task
from ringspan_triton import Triton

TRITON = Triton()
CPU = DeviceInfo(type="cpu")


def gpu(major: int, minor: int) -> DeviceInfo:
    return DeviceInfo(type="cuda", index=0, compute_capability=(major, minor))


def reasons(device: DeviceInfo, dtype: str, head_dim: int = 64) -> list[str]:
    problem = Problem(device.type, dtype, MaskCase.CAUSAL, head_dim, head_dim, device_info=device)
    return list(TRITON.reasons_against(problem))


def test_it_is_behind_torchs_kernels_on_a_gpu_and_behind_everything_on_a_cpu() -> None:
    assert TRITON.priority(gpu(9, 0)) == 60
    assert TRITON.priority(CPU) < 0


def test_every_task_is_declared() -> None:
    assert TRITON.capabilities.tasks == set(Task)


@pytest.mark.parametrize(
    ("device", "dtype", "head_dim", "reason"),
    [
        (gpu(7, 0), "float16", 64, "compute capability 7.0"),
        (gpu(7, 5), "bfloat16", 64, "dtype bfloat16 on compute capability 7.5"),
        (gpu(7, 5), "float32", 256, "head_dim 256 in float32 on compute capability 7.5"),
        (gpu(9, 0), "float64", 64, "dtype float64"),
    ],
)
def test_what_an_architecture_lacks_is_a_reason(
    device: DeviceInfo, dtype: str, head_dim: int, reason: str
) -> None:
    assert reasons(device, dtype, head_dim)[0].startswith(reason)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_on_hopper_everything_declared_is_served(dtype: str) -> None:
    assert not reasons(gpu(9, 0), dtype, 256)


def test_on_a_cpu_it_is_usable_only_where_it_is_interpreted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    answer = TRITON.probe(CPU)
    assert not answer.usable
    assert "TRITON_INTERPRET=1" in answer.remedy


def test_without_triton_the_remedy_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ringspan_triton.backend.find_spec", lambda name: None)
    assert "ringspan-triton[kernel]" in TRITON.probe(gpu(9, 0)).remedy


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_the_reason_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert "sees no CUDA device" in TRITON.probe(gpu(9, 0)).reason


def test_a_gpu_is_not_used_where_kernels_are_interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "unset TRITON_INTERPRET" in TRITON.probe(gpu(9, 0)).remedy
