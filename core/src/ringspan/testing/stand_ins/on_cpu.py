"""An adapter with CPU tensors let through to the stand-in of its kernel."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ringspan.contracts import AttentionBackend, Availability, DeviceInfo

__all__ = ["OnCpu"]


class OnCpu(AttentionBackend):
    """The first base of an adapter's subclass that serves CPU tensors and probes nothing.

    Its capabilities are the adapter's, for another device and without compute capabilities.

    Example:
        >>> class MineOnCpu(OnCpu, Mine):
        ...     pass
        >>> MineOnCpu.capabilities.devices
        frozenset({'cpu'})
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.capabilities = replace(
            cls.capabilities, devices=frozenset({"cpu"}), compute_capabilities=None
        )

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable on a CPU."""
        if device.type != "cpu":
            return Availability.no(f"device {device.type} (supported: cpu)")
        return Availability.yes()

    def proof(self, device: DeviceInfo) -> Availability:
        """Usable: tests are the proof."""
        return Availability.yes()
