"""How messages travel: what the settings say of a ring, kept from the forward to the backward."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringspan.catalogue import configuration
from ringspan.engine.merge import accumulation_dtype
from ringspan.plan.parts import WHOLE_STEPS

if TYPE_CHECKING:
    import torch

__all__ = ["Wire"]

_MESSAGE_BYTES = {"cpu": 2**20}
_MESSAGE_BYTES_OF_DEVICES = 2**25
"""Enough to hide the latency of a link between devices, little beside their memory."""


@dataclass(frozen=True, slots=True)
class Wire:
    """The settings of a ring's messages."""

    debug: bool = False
    """Whether every message carries a checksum."""
    wide_gradients: bool = True
    """Whether gradients travel in float32 (float64), or in the input's dtype."""
    message_bytes: int | None = None
    """Of key/value rows in one message; None: by the device."""

    @classmethod
    def configured(cls) -> Wire:
        """As the settings say now."""
        settings = configuration()
        return cls(
            debug=settings.get("debug").value,
            wide_gradients=settings.get("gradient_wire").value == "wide",
            message_bytes=settings.get("message_bytes").value,
        )

    def gradient_itemsize(self, dtype: torch.dtype) -> int:
        """Bytes of one element of a gradient on its way."""
        return accumulation_dtype(dtype).itemsize if self.wide_gradients else dtype.itemsize

    def most_rows(self, row_bytes: int, device: str, world_size: int) -> int:
        """Key/value rows in one message; a step of more travels in parts.

        `row_bytes` are those of one row's key and value, over the batch; `device` is its type.
        """
        if world_size == 1:
            return WHOLE_STEPS
        most = self.message_bytes or _MESSAGE_BYTES.get(device, _MESSAGE_BYTES_OF_DEVICES)
        return max(1, most // max(1, row_bytes))
