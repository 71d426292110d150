"""The provider `sdpa-cpu`: PyTorch's flash kernel for CPUs."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from ringspan.contracts import (
    Availability,
    Capabilities,
    DeviceInfo,
    Grads,
    Mask,
    MaskCase,
    TileOutput,
)
from ringspan.contracts.adapters import arguments
from ringspan.contracts.adapters.guarded import GuardedKernel
from ringspan.contracts.adapters.trial import trial

from ringspan_sdpa.kernel import cpu_backward, cpu_forward
from ringspan_sdpa.masked import attend_masked, attend_masked_backward

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["SdpaCpu"]


class SdpaCpu(GuardedKernel):
    """`aten::_scaled_dot_product_flash_attention_for_cpu`, for every mask.

    Full and causal masks are one call of the kernel. Other masks, and padded keys, are cut into
    calls without a bias and calls with a small one (see `ringspan_sdpa.pieces`). The kernel ends
    the process without queries or keys, and reads other devices and last strides other than 1
    as garbage: all are guarded. Its dropout draws from a generator of its own, and is not used.
    """

    name: ClassVar[str] = "sdpa-cpu"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cpu"}),
        dtypes=frozenset({"float64", "float32", "bfloat16", "float16"}),
        masks=frozenset(MaskCase) - {MaskCase.BAND},
        value_head_dim_differs=True,
        gqa=True,
        key_padding=True,
    )

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable on a CPU where a tiny forward and backward agree with the formula."""
        if device.type != "cpu":
            return Availability.no(f"device {device.type} (supported: cpu)")
        return trial(self, torch.device("cpu"), torch.float32)

    def priority(self, device: DeviceInfo) -> int:
        """Above every other kernel on a CPU."""
        return 100

    def attend(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """One call of the kernel, or one for each piece of the mask."""
        q, k, v = (_kernel_view(x) for x in (query, key, value))
        if _is_one_call(mask):
            out, lse = cpu_forward(q, k, v, causal=mask.case is MaskCase.CAUSAL, scale=scale)
        else:
            out, lse = attend_masked(q, k, v, mask, scale)
        return TileOutput(out.transpose(1, 2), lse)

    def attend_backward(
        self,
        grad_out: Float[Tensor, "B Lq H D"],
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        out: Float[Tensor, "B Lq H D"],
        lse: Float[Tensor, "B H Lq"],
        *,
        mask: Mask,
        scale: float,
    ) -> Grads:
        """float16 is computed and returned in float32, where the kernel is many times faster."""
        tensors = [_kernel_view(x) for x in (grad_out, query, key, value, out)]
        if query.dtype == torch.float16:
            tensors = [x.float() for x in tensors]
        dout, q, k, v, final = tensors
        if _is_one_call(mask):
            causal = mask.case is MaskCase.CAUSAL
            grads = cpu_backward(dout, q, k, v, final, lse, causal=causal, scale=scale)
        else:
            grads = attend_masked_backward(dout, q, k, v, final, lse, mask, scale)
        return Grads(*(grad.transpose(1, 2) for grad in grads))


def _is_one_call(mask: Mask) -> bool:
    return mask.case in (MaskCase.FULL, MaskCase.CAUSAL) and mask.key_seen is None


def _kernel_view(x: Float[Tensor, "B L H D"]) -> Float[Tensor, "B H L D"]:
    """`x` as the kernel takes it: a view, unless its last stride is not 1."""
    return arguments.with_last_stride_one(x).transpose(1, 2)
