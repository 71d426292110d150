"""What machine is this? Devices as plain data, so that tests can construct GPUs nobody has."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringspan_registry import nvml
from ringspan_registry.errors import InvalidArgument

if TYPE_CHECKING:
    import torch

__all__ = ["DeviceInfo", "detect", "detect_all", "recommended_dtype"]

_ARCHITECTURES = {
    "pascal": ((6, 0), (6, 1), (6, 2)),
    "volta": ((7, 0), (7, 2)),
    "turing": ((7, 5),),
    "ampere": ((8, 0), (8, 6), (8, 7)),
    "ada": ((8, 9),),
}
_ARCHITECTURE_OF_MAJOR = {9: "hopper", 10: "blackwell", 11: "blackwell", 12: "blackwell"}


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device, as plain data.

    `None` and `""` mean that the driver or the operating system did not say. Amounts of memory
    are in bytes and take no part in equality, so a device equals itself while it is in use.

    Example:
        >>> DeviceInfo(type="cuda", name="NVIDIA H100", compute_capability=(9, 0)).architecture
        'hopper'
    """

    type: str
    index: int | None = None
    name: str = ""
    compute_capability: tuple[int, int] | None = None
    memory_total: int | None = field(default=None, compare=False)
    memory_free: int | None = field(default=None, compare=False)
    driver: str = ""
    nvlink: bool | None = None
    mig: bool | None = None

    @property
    def architecture(self) -> str:
        """Family of the device: `pascal` .. `blackwell` for NVIDIA GPUs, otherwise its type."""
        if self.compute_capability is None:
            return self.type
        for name, capabilities in _ARCHITECTURES.items():
            if self.compute_capability in capabilities:
                return name
        return _ARCHITECTURE_OF_MAJOR.get(self.compute_capability[0], self.type)


def detect(device: torch.device | str) -> DeviceInfo:
    """What `device` is, asked of torch, of NVML and of the operating system.

    Facts that never change are asked once per process; free memory is asked every time. Where
    NVML is missing, what only it knows stays unknown.

    Raises:
        InvalidArgument: no such device on this machine.

    Example:
        >>> detect("cpu").type
        'cpu'
    """
    import torch

    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidArgument(
            "device", expected="a torch device such as 'cpu' or 'cuda:0'", got=repr(device)
        ) from error
    if wanted.type == "cpu":
        return _cpu()
    if wanted.type == "cuda":
        return _cuda(wanted.index)
    return DeviceInfo(type=wanted.type, index=wanted.index)


def detect_all() -> tuple[DeviceInfo, ...]:
    """The CPU, then every accelerator that torch can see."""
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return (detect("cpu"),)
    count = torch.accelerator.device_count()
    return (
        detect("cpu"),
        *(detect(torch.device(accelerator.type, index)) for index in range(count)),
    )


def recommended_dtype(device: DeviceInfo | torch.device | str) -> str:
    """The dtype in which attention is fast and sound on a device, as `"bfloat16"`.

    bfloat16 from Ampere on; float16 on Volta and Turing, whose tensor cores know no bfloat16;
    float32 on Pascal, on CPUs and on what is not known.

    Example:
        >>> recommended_dtype(DeviceInfo(type="cuda", compute_capability=(8, 0)))
        'bfloat16'
    """
    info = device if isinstance(device, DeviceInfo) else detect(device)
    if info.type != "cuda" or info.compute_capability is None:
        return "float32"
    if info.compute_capability >= (8, 0):
        return "bfloat16"
    return "float16" if info.compute_capability >= (7, 0) else "float32"


def _cpu() -> DeviceInfo:
    return DeviceInfo(
        type="cpu",
        name=_cpu_name(),
        memory_total=_memory("SC_PHYS_PAGES"),
        memory_free=_memory("SC_AVPHYS_PAGES"),
    )


@cache
def _cpu_name() -> str:
    table = Path("/proc/cpuinfo")
    if table.is_file():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def _memory(pages: str) -> int | None:
    try:
        return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows has no sysconf, macOS not every name
        return None


@dataclass(frozen=True, slots=True)
class _CudaFacts:
    """What never changes about one of torch's CUDA devices."""

    name: str
    compute_capability: tuple[int, int] | None
    memory_total: int
    board: nvml.Board | None


def _cuda(index: int | None) -> DeviceInfo:
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index is None and count:
        index = torch.cuda.current_device()
    if index is None or index >= count:
        raise InvalidArgument(
            "device",
            expected=f"one of the {count} CUDA devices that torch sees",
            got="cuda" if index is None else f"cuda:{index}",
            remedy=""
            if count
            else "Use device='cpu', or install a CUDA build of torch and a driver",
        )
    facts = _cuda_facts(index)
    board = facts.board
    return DeviceInfo(
        type="cuda",
        index=index,
        name=facts.name,
        compute_capability=facts.compute_capability,
        memory_total=facts.memory_total,
        memory_free=_cuda_memory_free(index, board),
        driver=board.driver if board else "",
        nvlink=board.nvlink if board else None,
        mig=board.mig if board else None,
    )


@cache
def _cuda_facts(index: int) -> _CudaFacts:
    import torch

    properties: Any = torch.cuda.get_device_properties(index)
    # ROCm calls its devices "cuda" too, and its numbers mean something else.
    capability = None if torch.version.hip else (properties.major, properties.minor)
    return _CudaFacts(
        name=properties.name,
        compute_capability=capability,
        memory_total=properties.total_memory,
        board=None if torch.version.hip else nvml.find(*_identities(properties)),
    )


def _identities(properties: Any) -> tuple[str | None, str | None]:
    """UUID and PCI address of a device, which hold whatever CUDA_VISIBLE_DEVICES reorders."""
    uuid = getattr(properties, "uuid", None)
    bus = getattr(properties, "pci_bus_id", None)
    if bus is None:
        return (None if uuid is None else str(uuid)), None
    domain = getattr(properties, "pci_domain_id", 0)
    slot = getattr(properties, "pci_device_id", 0)
    return (None if uuid is None else str(uuid)), f"{domain:08x}:{bus:02x}:{slot:02x}.0"


def _cuda_memory_free(index: int, board: nvml.Board | None) -> int | None:
    # NVML first: torch would open a context of hundreds of megabytes on every device it asks.
    # A MIG instance has a share of the board, which only torch reports.
    if board is not None and not board.mig:
        free = nvml.memory_free(board)
        if free is not None:
            return free
    import torch

    return int(torch.cuda.mem_get_info(index)[0])
