"""The provider `sdpa-cpu`: PyTorch's flash kernel for CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from ringspan.contracts import (
    AttentionBackend,
    Availability,
    Capabilities,
    DeviceInfo,
    Grads,
    Mask,
    MaskCase,
    TileOutput,
)

from ringspan_sdpa import arguments
from ringspan_sdpa.interval import attend_interval, attend_interval_backward
from ringspan_sdpa.kernel import cpu_backward, cpu_forward
from ringspan_sdpa.scale import above_zero, unfolded
from ringspan_sdpa.trial import trial

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["SdpaCpu"]


class SdpaCpu(AttentionBackend):
    """`aten::_scaled_dot_product_flash_attention_for_cpu`, for every mask.

    Full and causal masks are one call of the kernel. An interval mask is cut into calls
    without a bias and calls with a small one (see `ringspan_sdpa.pieces`). Head dimensions that
    differ are made equal with zero columns. The kernel ends the process without queries or
    keys, and reads other devices and last strides other than 1 as garbage: all are guarded.
    """

    name: ClassVar[str] = "sdpa-cpu"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cpu"}),
        dtypes=frozenset({"float64", "float32", "bfloat16", "float16"}),
        masks=frozenset(MaskCase),
        value_head_dim_differs=True,
        gqa=True,
    )

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable on a CPU where a tiny forward and backward agree with the formula."""
        if device.type != "cpu":
            return Availability.no(f"device {device.type} (supported: cpu)")
        return trial(self, torch.device("cpu"), torch.float32)

    def priority(self, device: DeviceInfo) -> int:
        """Above every other kernel on a CPU."""
        return 100

    def forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv Dv"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """Attention of each tile on its own, with its log-sum-exp.

        Raises:
            InvalidArgument: tensors not on a CPU, of several dtypes, or a causal mask with
                other than as many queries as keys.
        """
        arguments.check_tensors("cpu", query=query, key=key, value=value)
        arguments.check_mask(mask, query.shape[1], key.shape[1])
        if not query.numel() or not key.numel():
            return arguments.nothing_seen(query, value)
        width = max(query.shape[-1], value.shape[-1])
        with torch.no_grad():
            folded, factor = above_zero(query, scale)
            q, k, v = (_kernel_view(x, width) for x in (folded, key, value))
            if mask.case is MaskCase.INTERVAL:
                out, lse = attend_interval(q, k, v, mask, factor)
            else:
                causal = mask.case is MaskCase.CAUSAL
                out, lse = cpu_forward(q, k, v, causal=causal, scale=factor)
        return TileOutput(out.transpose(1, 2)[..., : value.shape[-1]], lse)

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
    ) -> Grads:
        """This tile's share of the gradients, given the final `out` and `lse` of all tiles.

        float16 is computed and returned in float32, where the kernel is many times faster.

        Raises:
            InvalidArgument: as in `forward`.
        """
        arguments.check_tensors(
            "cpu", query=query, key=key, value=value, grad_out=grad_out, out=out
        )
        arguments.check_tensors("cpu", lse=lse)
        arguments.check_mask(mask, query.shape[1], key.shape[1])
        if not query.numel() or not key.numel():
            return arguments.no_grads(query, key, value)
        width = max(query.shape[-1], value.shape[-1])
        with torch.no_grad():
            folded, factor = above_zero(query, scale)
            tensors = [grad_out, folded, key, value, out]
            if query.dtype == torch.float16:
                tensors = [x.float() for x in tensors]
            dout, q, k, v, final = (_kernel_view(x, width) for x in tensors)
            if mask.case is MaskCase.INTERVAL:
                grads = attend_interval_backward(dout, q, k, v, final, lse, mask, factor)
            else:
                causal = mask.case is MaskCase.CAUSAL
                grads = cpu_backward(dout, q, k, v, final, lse, causal=causal, scale=factor)
            dims = (query.shape[-1], key.shape[-1], value.shape[-1])
            dq, dk, dv = (g.transpose(1, 2)[..., :dim] for g, dim in zip(grads, dims, strict=True))
            return Grads(unfolded(dq, scale), dk, dv)


def _kernel_view(x: Float[Tensor, "B L H D"], width: int) -> Float[Tensor, "B H L width"]:
    """`x` as the kernel takes it: a view, unless columns or a last stride of 1 are missing."""
    return arguments.with_last_stride_one(arguments.with_width(x, width)).transpose(1, 2)
