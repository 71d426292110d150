"""Devices as data, and what torch and NVML say about machines that nobody here has."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan_registry import (
    DeviceInfo,
    InvalidArgument,
    detect,
    detect_all,
    devices,
    nvml,
    recommended_dtype,
)

UUIDS = ("11111111-aaaa", "22222222-bbbb")


@pytest.mark.parametrize(
    ("capability", "architecture"),
    [
        ((6, 0), "pascal"),
        ((6, 1), "pascal"),
        ((7, 0), "volta"),
        ((7, 2), "volta"),
        ((7, 5), "turing"),
        ((8, 0), "ampere"),
        ((8, 6), "ampere"),
        ((8, 7), "ampere"),
        ((8, 9), "ada"),
        ((9, 0), "hopper"),
        ((10, 0), "blackwell"),
        ((10, 3), "blackwell"),
        ((11, 0), "blackwell"),
        ((12, 1), "blackwell"),
        ((5, 2), "cuda"),
        ((13, 0), "cuda"),
        (None, "cuda"),
    ],
)
def test_architectures_are_named_by_compute_capability(
    capability: tuple[int, int] | None, architecture: str
) -> None:
    assert DeviceInfo(type="cuda", compute_capability=capability).architecture == architecture


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [
        ((6, 1), "float32"),
        ((7, 0), "float16"),
        ((7, 5), "float16"),
        ((8, 0), "bfloat16"),
        ((8, 9), "bfloat16"),
        ((9, 0), "bfloat16"),
        ((12, 1), "bfloat16"),
        (None, "float32"),
    ],
)
def test_the_recommended_dtype_is_what_the_tensor_cores_take(
    capability: tuple[int, int] | None, dtype: str
) -> None:
    assert recommended_dtype(DeviceInfo(type="cuda", compute_capability=capability)) == dtype


def test_float32_is_recommended_where_nothing_is_known_and_a_torch_device_is_detected() -> None:
    assert recommended_dtype(DeviceInfo(type="xpu")) == "float32"
    assert recommended_dtype("cpu") == recommended_dtype(torch.device("cpu")) == "float32"


@given(st.sampled_from(["cpu", "mps", "xpu"]))
def test_a_device_without_compute_capability_has_its_type_as_architecture(kind: str) -> None:
    assert DeviceInfo(type=kind).architecture == kind


@given(st.integers(0), st.integers(0))
def test_a_device_equals_itself_while_its_memory_is_in_use(before: int, after: int) -> None:
    device = DeviceInfo(type="cuda", index=1, name="NVIDIA GB200", memory_free=before)
    busy = replace(device, memory_free=after)
    assert busy == device
    assert hash(busy) == hash(device)
    assert replace(device, index=0) != device


def test_the_cpu_is_detected_with_its_name_and_memory() -> None:
    found = detect("cpu")
    assert (found.type, found.index, found.architecture) == ("cpu", None, "cpu")
    assert found.name
    if sys.platform == "linux":
        assert found.memory_total is not None
        assert found.memory_free is not None
        assert 0 < found.memory_free <= found.memory_total
    assert found == detect(torch.device("cpu")) == detect_all()[0]


def test_an_operating_system_that_does_not_say_leaves_memory_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def sysconf(name: str) -> int:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert detect("cpu").memory_total is None


@pytest.mark.parametrize("name", ["cupboard", "", 7.5])
def test_what_is_not_a_device_is_an_invalid_argument(name: Any) -> None:
    with pytest.raises(InvalidArgument, match="device: expected a torch device"):
        detect(name)


def test_a_device_that_torch_does_not_describe_keeps_its_type() -> None:
    assert detect("meta") == DeviceInfo(type="meta")


class FakeNvml(ModuleType):
    """Two boards, numbered by bus: the reverse of how CUDA numbers them here."""

    NVML_NVLINK_MAX_LINKS = 2
    NVML_FEATURE_ENABLED = 1
    NVML_DEVICE_MIG_ENABLE = 1

    class NVMLError(Exception):
        pass

    class NVMLError_NotSupported(NVMLError):  # noqa: N801, N818 - as the library calls it
        pass

    def __init__(self) -> None:
        super().__init__("pynvml")
        self.boards: dict[str, dict[str, Any]] = {
            f"GPU-{UUIDS[1]}": {"pci": "00000000:17:00.0", "free": 20, "links": [1], "mig": 0},
            f"GPU-{UUIDS[0]}": {"pci": "00000001:65:00.0", "free": 10, "links": [0, 0], "mig": 0},
        }

    def nvmlSystemGetDriverVersion(self) -> str:
        return "590.48"

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return self._one(handle for handle in self.boards if handle == uuid)

    def nvmlDeviceGetHandleByPciBusId(self, pci: str) -> str:
        return self._one(handle for handle, board in self.boards.items() if board["pci"] == pci)

    def _one(self, handles: Iterator[str]) -> str:
        found = next(handles, None)
        if found is None:
            raise self.NVMLError("not found")
        return found

    def nvmlDeviceGetMemoryInfo(self, handle: str) -> SimpleNamespace:
        return SimpleNamespace(free=self.boards[handle]["free"])

    def nvmlDeviceGetNvLinkState(self, handle: str, link: int) -> int:
        links = self.boards[handle]["links"]
        if links is None:
            raise self.NVMLError_NotSupported
        if link >= len(links):
            raise self.NVMLError("no such link")
        return int(links[link])

    def nvmlDeviceIsMigDeviceHandle(self, handle: str) -> int:
        return int(handle.startswith("MIG-"))

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:
        mode = self.boards[handle]["mig"]
        if isinstance(mode, Exception):
            raise mode
        return [mode, 0]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[SimpleNamespace]]:
    """Two GPUs as torch would describe them."""
    described = [
        SimpleNamespace(
            name=name,
            major=9,
            minor=0,
            total_memory=1000,
            uuid=uuid,
            pci_domain_id=domain,
            pci_bus_id=bus,
            pci_device_id=0,
        )
        for name, uuid, domain, bus in (("H100", UUIDS[0], 1, 0x65), ("H200", UUIDS[1], 0, 0x17))
    ]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(described))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", described.__getitem__)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda index: (777, 1000))
    devices._cuda_facts.cache_clear()
    yield described
    devices._cuda_facts.cache_clear()


@pytest.fixture
def fake_nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    library = FakeNvml()
    monkeypatch.setattr(nvml, "_library", lambda: library)
    return library


@pytest.mark.usefixtures("gpus", "fake_nvml")
def test_a_gpu_is_found_in_nvml_by_uuid_however_cuda_numbers_it() -> None:
    first, second = detect("cuda:0"), detect("cuda:1")
    assert first == DeviceInfo(
        type="cuda",
        index=0,
        name="H100",
        compute_capability=(9, 0),
        driver="590.48",
        nvlink=False,
        mig=False,
    )
    assert (first.memory_total, first.memory_free) == (1000, 10)
    assert (second.name, second.nvlink, second.memory_free) == ("H200", True, 20)


@pytest.mark.usefixtures("fake_nvml")
def test_without_a_uuid_a_gpu_is_found_by_its_pci_address(gpus: list[SimpleNamespace]) -> None:
    del gpus[0].uuid
    assert detect("cuda:0").memory_free == 10


@pytest.mark.usefixtures("fake_nvml")
def test_without_either_nvml_is_not_asked(gpus: list[SimpleNamespace]) -> None:
    del gpus[0].uuid
    del gpus[0].pci_bus_id
    assert detect("cuda:0").driver == ""
    assert detect("cuda:0").memory_free == 777


@pytest.mark.usefixtures("gpus")
def test_where_nvml_is_missing_what_only_it_knows_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nvml, "_library", lambda: None)
    found = detect("cuda:0")
    assert (found.driver, found.nvlink, found.mig) == ("", None, None)
    assert (found.name, found.memory_free) == ("H100", 777)


@pytest.mark.usefixtures("gpus", "fake_nvml")
def test_free_memory_is_asked_every_time(fake_nvml: FakeNvml) -> None:
    assert detect("cuda:0").memory_free == 10
    fake_nvml.boards[f"GPU-{UUIDS[0]}"]["free"] = 9
    assert detect("cuda:0").memory_free == 9


@pytest.mark.usefixtures("gpus")
def test_a_gpu_cut_into_instances_reports_the_memory_of_its_instance(fake_nvml: FakeNvml) -> None:
    fake_nvml.boards[f"GPU-{UUIDS[0]}"]["mig"] = 1
    found = detect("cuda:0")
    assert (found.mig, found.memory_free) == (True, 777)


@pytest.mark.usefixtures("gpus")
def test_an_instance_may_be_found_by_its_own_uuid(fake_nvml: FakeNvml) -> None:
    fake_nvml.boards[f"MIG-{UUIDS[0]}"] = fake_nvml.boards.pop(f"GPU-{UUIDS[0]}")
    assert detect("cuda:0").mig is True


@pytest.mark.usefixtures("gpus")
def test_what_a_board_does_not_support_is_absent_and_what_fails_is_unknown(
    fake_nvml: FakeNvml,
) -> None:
    board = fake_nvml.boards[f"GPU-{UUIDS[0]}"]
    board["links"], board["mig"] = None, FakeNvml.NVMLError_NotSupported()
    assert (detect("cuda:0").nvlink, detect("cuda:0").mig) == (False, False)
    devices._cuda_facts.cache_clear()
    board["links"], board["mig"] = [], FakeNvml.NVMLError()
    assert (detect("cuda:0").nvlink, detect("cuda:0").mig) == (None, None)


@pytest.mark.usefixtures("gpus", "fake_nvml")
def test_rocms_version_numbers_are_not_compute_capabilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.version, "hip", "7.0")
    found = detect("cuda:0")
    assert found.compute_capability is None
    assert found.architecture == "cuda"


@pytest.mark.usefixtures("gpus", "fake_nvml")
def test_cuda_without_an_index_is_the_current_device() -> None:
    assert detect("cuda").index == 1


@pytest.mark.usefixtures("gpus", "fake_nvml")
def test_every_device_is_listed_the_cpu_first(monkeypatch: pytest.MonkeyPatch) -> None:
    accelerator = torch.accelerator
    monkeypatch.setattr(
        accelerator, "current_accelerator", lambda check_available: torch.device("cuda")
    )
    monkeypatch.setattr(accelerator, "device_count", lambda: 2)
    assert [(found.type, found.index) for found in detect_all()] == [
        ("cpu", None),
        ("cuda", 0),
        ("cuda", 1),
    ]


@pytest.mark.usefixtures("gpus", "fake_nvml")
def test_a_gpu_that_is_not_there_is_an_invalid_argument(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidArgument, match=r"one of the 2 CUDA devices.*got cuda:2"):
        detect("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InvalidArgument, match="Use device='cpu'"):
        detect("cuda")


@pytest.mark.parametrize("missing", ["package", "driver"])
def test_nvml_may_be_missing_altogether(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    library = FakeNvml()

    def no_driver() -> None:
        raise library.NVMLError("library not found")

    library.nvmlInit = no_driver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pynvml", None if missing == "package" else library)
    nvml._library.cache_clear()
    try:
        assert nvml.find(UUIDS[0], None) is None
    finally:
        nvml._library.cache_clear()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_is_the_one_that_torch_and_nvml_both_mean() -> None:
    found = detect("cuda:0")
    properties = torch.cuda.get_device_properties(0)
    assert found.name == properties.name
    assert found.compute_capability == (properties.major, properties.minor)
    assert found.memory_total == properties.total_memory
    assert found.driver
    assert found.mig is not None
    assert found.memory_free is not None
    assert 0 < found.memory_free <= properties.total_memory
