"""What only NVIDIA's management library knows about a GPU; where it is missing, nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

__all__ = ["Board", "find", "memory_free"]


@dataclass(frozen=True, slots=True)
class Board:
    """One GPU as NVML knows it."""

    handle: Any
    driver: str
    nvlink: bool | None
    """Whether any link to another device is up."""
    mig: bool | None
    """Whether the GPU is cut into instances."""


def find(uuid: str | None, pci_address: str | None) -> Board | None:
    """The board with that UUID, else at that PCI address; None where NVML cannot say.

    NVML numbers devices by bus and torch by CUDA_VISIBLE_DEVICES, so an index means nothing.
    """
    library = _library()
    if library is None:
        return None
    handle = _handle(library, uuid, pci_address)
    if handle is None:
        return None
    return Board(
        handle=handle,
        driver=_ask(library, library.nvmlSystemGetDriverVersion) or "",
        nvlink=_nvlink(library, handle),
        mig=_mig(library, handle),
    )


def memory_free(board: Board) -> int | None:
    """Bytes of the board's memory that nobody uses, or None."""
    library = _library()
    if library is None:
        return None
    memory = _ask(library, library.nvmlDeviceGetMemoryInfo, board.handle)
    return None if memory is None else int(memory.free)


@cache
def _library() -> Any | None:
    """The initialised binding; None without the package, the driver's library or a driver."""
    try:
        import pynvml  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    return pynvml


def _ask(library: Any, question: Callable[..., Any], *arguments: Any) -> Any | None:
    """The answer, or None where this driver or board does not know it."""
    try:
        return question(*arguments)
    except library.NVMLError:
        return None


def _handle(library: Any, uuid: str | None, pci_address: str | None) -> Any | None:
    if uuid is not None:
        spellings = (uuid,) if uuid.startswith(("GPU-", "MIG-")) else (f"GPU-{uuid}", f"MIG-{uuid}")
        for spelling in spellings:
            handle = _ask(library, library.nvmlDeviceGetHandleByUUID, spelling)
            if handle is not None:
                return handle
    if pci_address is None:
        return None
    return _ask(library, library.nvmlDeviceGetHandleByPciBusId, pci_address)


def _nvlink(library: Any, handle: Any) -> bool | None:
    known = False
    for link in range(library.NVML_NVLINK_MAX_LINKS):
        try:
            if library.nvmlDeviceGetNvLinkState(handle, link) == library.NVML_FEATURE_ENABLED:
                return True
            known = True
        except library.NVMLError_NotSupported:
            known = True
        except library.NVMLError:
            continue
    return False if known else None


def _mig(library: Any, handle: Any) -> bool | None:
    if _ask(library, library.nvmlDeviceIsMigDeviceHandle, handle):
        return True
    try:
        current, _pending = library.nvmlDeviceGetMigMode(handle)
    except library.NVMLError_NotSupported:
        return False
    except library.NVMLError:
        return None
    return bool(current == library.NVML_DEVICE_MIG_ENABLE)
