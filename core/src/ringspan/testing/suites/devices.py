"""The devices on which suites run."""

from __future__ import annotations

from functools import cache

import torch
from ringspan_registry import detect_all

from ringspan.contracts import DeviceInfo

__all__ = ["device_name", "present_devices", "torch_device"]


@cache
def present_devices() -> tuple[DeviceInfo, ...]:
    """The first device of each type on this machine."""
    first: dict[str, DeviceInfo] = {}
    for device in detect_all():
        first.setdefault(device.type, device)
    return tuple(first.values())


def device_name(device: DeviceInfo) -> str:
    """As torch writes it: `"cuda:0"`."""
    return device.type if device.index is None else f"{device.type}:{device.index}"


def torch_device(device: DeviceInfo) -> torch.device:
    """The same device for torch."""
    return torch.device(device_name(device))
