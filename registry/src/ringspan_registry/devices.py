"""What machine is this? Devices as plain data, so that tests can construct GPUs nobody has."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["DeviceInfo"]


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """One device, as plain data.

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
        """Family name of the device: `pascal` .. `blackwell` for NVIDIA GPUs, otherwise its type."""
        raise NotImplementedError
