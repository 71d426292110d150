"""Host memory by way of which a device's tensors travel, allocated once."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["HostBuffer", "HostPool"]


class HostBuffer(NamedTuple):
    """Host memory, page-locked where a device copies to and from it."""

    memory: Tensor
    copied: torch.Event | None
    """An event that the device passes after its copies; None: the host itself copies."""

    def head(self, nbytes: int) -> Tensor:
        """Its first bytes."""
        return self.memory[:nbytes]

    def mark(self) -> None:
        """Has the event stand for all copies that the current stream was given so far."""
        if self.copied is not None:
            self.copied.record()

    def wait(self) -> None:
        """Until the marked copies are done."""
        if self.copied is not None:
            self.copied.synchronize()


class HostPool:
    """Buffers for one device, which are reused and never freed.

    Sizes are rounded up to powers of two, so that lengths which change from call to call keep
    using the same few buffers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._idle: defaultdict[int, list[HostBuffer]] = defaultdict(list)
        self.allocations = 0

    def take(self, nbytes: int) -> HostBuffer:
        """A buffer of at least `nbytes` that nobody uses."""
        capacity = 1 << (nbytes - 1).bit_length()
        if self._idle[capacity]:
            buffer = self._idle[capacity].pop(0)
            buffer.wait()
            return buffer
        self.allocations += 1
        on_device = self._device.type != "cpu"
        # Whatever mode the caller is in: later ones may be in another.
        with torch.inference_mode(False):
            memory = torch.empty(capacity, dtype=torch.uint8, pin_memory=on_device)
        return HostBuffer(memory, torch.Event(self._device) if on_device else None)

    def give_back(self, buffer: HostBuffer) -> None:
        """Makes it available again once the device has done the copies queued so far."""
        buffer.mark()
        self._idle[buffer.memory.numel()].append(buffer)
