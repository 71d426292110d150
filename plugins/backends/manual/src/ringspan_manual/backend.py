"""The provider `manual`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from ringspan.contracts import (
    FULL,
    AttentionBackend,
    Availability,
    Capabilities,
    DeviceInfo,
    Grads,
    Mask,
    MaskCase,
    Problem,
    TileOutput,
)

from ringspan_manual.attention import attend, attend_backward

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Float
    from ringspan.contracts import Dropout
    from torch import Tensor

__all__ = ["Manual"]


class Manual(AttentionBackend):
    """Attention by plain matrix products, accumulated in float32 (float64 for float64 inputs).

    Slow and exact: every mask, every head dimension, every stride, any device that torch
    computes on. It serves where no kernel does, and every kernel can be compared with it.
    """

    name: ClassVar[str] = "manual"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cpu", "cuda", "mps", "xpu"}),
        dtypes=frozenset({"float64", "float32", "bfloat16", "float16"}),
        masks=frozenset(MaskCase),
        value_head_dim_differs=True,
        gqa=True,
        key_padding=True,
        dropout=True,
    )

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable where torch has the device and a tiny product runs on it."""
        if device.type not in self.capabilities.devices:
            supported = ", ".join(sorted(self.capabilities.devices))
            return Availability.no(f"device {device.type} (supported: {supported})")
        if not torch.get_device_module(device.type).is_available():
            return Availability.no(
                f"torch {torch.__version__} sees no {device.type} device",
                remedy=f"install a build of torch for {device.type}, on a machine that has one",
            )
        tile = torch.ones(1, 1, 1, 1, device=torch.device(device.type, device.index or 0))
        if self.forward(tile, tile, tile, mask=FULL, scale=1.0).out.item() != 1.0:
            return Availability.no(f"a tiny call on {device.type} returned a wrong result")
        return Availability.yes(version=torch.__version__)

    def priority(self, device: DeviceInfo) -> int:
        """Below every kernel."""
        return -1000

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        """Metal has no float64."""
        if problem.device == "mps" and problem.dtype == "float64":
            yield "dtype float64 on mps (supported: bfloat16, float16, float32)"

    def forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        *,
        mask: Mask,
        scale: float,
        dropout: Dropout | None = None,
    ) -> TileOutput:
        """Attention of each tile on its own; see `ringspan_manual.attention.attend`."""
        # Autocast would put the products back into 16 bits.
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            return attend(query, key, value, mask, scale, dropout)

    def backward(
        self,
        grad_out: Float[Tensor, "B Lq H Dv"],
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        out: Float[Tensor, "B Lq H Dv"],
        lse: Float[Tensor, "B H Lq"],
        *,
        mask: Mask,
        scale: float,
        dropout: Dropout | None = None,
    ) -> Grads:
        """This tile's share of the gradients; see `ringspan_manual.attention.attend_backward`."""
        with torch.no_grad(), torch.autocast(query.device.type, enabled=False):
            return attend_backward(grad_out, query, key, value, out, lse, mask, scale, dropout)
