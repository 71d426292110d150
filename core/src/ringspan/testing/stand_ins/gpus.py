"""A GPU as far as the probe of an adapter asks, before and behind the call of its kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from ringspan.contracts.adapters import cuda
from ringspan.contracts.adapters.trial import trial

if TYPE_CHECKING:
    import pytest

    from ringspan.contracts import AttentionBackend, Availability, DeviceInfo

__all__ = ["pretend_gpu", "reason_against", "tried_on"]


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, device: DeviceInfo) -> None:
    """Torch says that it is built for CUDA, and sees one GPU: `device`."""
    capability = device.compute_capability
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    monkeypatch.setattr(torch.version, "hip", None)


def tried_on(monkeypatch: pytest.MonkeyPatch, backend: AttentionBackend) -> None:
    """Every tiny call that a `CudaKernel` makes to prove itself goes to `backend`, on the CPU."""

    def elsewhere(
        adapter: AttentionBackend, device: torch.device, dtype: torch.dtype
    ) -> Availability:
        return trial(backend, torch.device("cpu"), dtype)

    monkeypatch.setattr(cuda, "trial", elsewhere)


def reason_against(adapter: AttentionBackend, device: DeviceInfo) -> str:
    """Why `adapter` cannot be used on `device`, by its probe or else by its proof."""
    found = adapter.probe(device)
    found = adapter.proof(device) if found.usable else found
    assert not found.usable, f"{adapter.name} is usable"
    return found.reason
