"""The provider `flash3`: FlashAttention 3, for Hopper."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ringspan.contracts import Availability, Capabilities, DeviceInfo, HeadDims, MaskCase, Problem
from ringspan.contracts.adapters.flash import Call, FlashKernel

from ringspan_flash3 import kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["Flash3"]

HOPPER = (9, 0)


class Flash3(FlashKernel):
    """`_flash_attn_forward` and `_flash_attn_backward` of `flash_attn_interface`."""

    name: ClassVar[str] = "flash3"
    remedy: ClassVar[str] = kernel.PACKAGE.remedy
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        masks=frozenset({MaskCase.FULL, MaskCase.CAUSAL, MaskCase.BAND}),
        head_dims=HeadDims(1, 256),
        compute_capabilities=((8, 0), HOPPER),
        value_head_dim_differs=True,
        gqa=True,
        ragged=True,
    )

    def missing(self) -> str:
        """Not built, a placeholder, other arguments, or built without something."""
        return kernel.missing()

    def kernel_version(self) -> str:
        """That of flash-attn-3; empty where the module is imported from a source tree."""
        return kernel.PACKAGE.version

    def probe(self, device: DeviceInfo) -> Availability:
        """As of any kernel; not every build has code for GPUs before Hopper."""
        found = device.compute_capability
        older = found is not None and (8, 0) <= found < HOPPER
        if older and not kernel.missing() and kernel.left_out("FLASHATTENTION_DISABLE_SM8x"):
            return Availability.no(
                "flash_attn_interface is built for compute capability 9.0 alone",
                remedy=self.remedy,
            )
        return super().probe(device)

    def priority(self, device: DeviceInfo) -> int:
        """First but for FlashAttention 4 on Hopper; behind FlashAttention 2 elsewhere."""
        return 450 if (device.compute_capability or (0, 0)) >= HOPPER else 340

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        """Sums in a fixed order are there for Hopper only, and not for the widest heads."""
        if not (problem.deterministic and problem.needs_backward):
            return
        width = max(problem.head_dims.values())
        if width > 192:
            yield f"a deterministic gradient with head dimension {width} (supported: 1..192)"
        found = problem.device_info.compute_capability
        if found is not None and found < HOPPER:
            yield (
                f"a deterministic gradient on compute capability {found[0]}.{found[1]} "
                "(supported: 9.0)"
            )

    def flash_forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, call: Call, scale: float
    ) -> tuple[Tensor, Tensor]:
        """One split: several would be summed in whatever order they end."""
        out, lse, *_ = kernel.PACKAGE.load()._flash_attn_forward(
            q=query,
            k=key,
            v=value,
            causal=call.causal,
            num_splits=1,
            **_options(call, scale),
        )
        return out, lse

    def flash_backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        *,
        call: Call,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients are written into the tensors that are handed in."""
        dq, dk, dv = (x.new_empty(x.shape) for x in (query, key, value))
        kernel.PACKAGE.load()._flash_attn_backward(
            dout=grad_out,
            q=query,
            k=key,
            v=value,
            out=out,
            softmax_lse=lse,
            dq=dq,
            dk=dk,
            dv=dv,
            is_causal=call.causal,
            deterministic=torch.are_deterministic_algorithms_enabled(),
            **_options(call, scale),
        )
        return dq, dk, dv


def _options(call: Call, scale: float) -> dict[str, Any]:
    left, right = call.window
    options = {"softmax_scale": scale, "window_size_left": left, "window_size_right": right}
    if call.lengths is None:
        return options
    return options | {
        "cu_seqlens_q": call.lengths.query_bounds,
        "cu_seqlens_k": call.lengths.key_bounds,
        "max_seqlen_q": call.lengths.query_longest,
        "max_seqlen_k": call.lengths.key_longest,
    }
