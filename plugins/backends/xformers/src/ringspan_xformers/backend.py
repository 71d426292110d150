"""The provider `xformers`: whichever memory-efficient operator xFormers chooses."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from ringspan.contracts import (
    Availability,
    Capabilities,
    DeviceInfo,
    HeadDims,
    MaskCase,
    Problem,
)
from ringspan.contracts.adapters.flash import Call, FlashKernel

from ringspan_xformers import kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Float
    from torch import Tensor

__all__ = ["XFormers"]

CUTLASS_LAST = (9, 0)
"""The last compute capability for which xFormers has its CUTLASS operators."""
FLASH_FIRST = (8, 0)
"""The first one for which it has those of FlashAttention, which alone take bands."""


class XFormers(FlashKernel):
    """`memory_efficient_attention_forward_requires_grad` and `memory_efficient_attention_backward`.

    The operator is left to xFormers: FlashAttention's where the GPU and the dtype allow it,
    otherwise CUTLASS's. Its backward has no grouped heads, and neither has CUTLASS: keys and
    values are repeated, and their gradients summed in float32. Its masks for tiles of many
    lengths are made from lists on the host, which would wait for the device.
    """

    name: ClassVar[str] = "xformers"
    remedy: ClassVar[str] = kernel.PACKAGE.remedy
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"float32", "bfloat16", "float16"}),
        masks=frozenset({MaskCase.FULL, MaskCase.CAUSAL, MaskCase.BAND}),
        head_dims=HeadDims(1, 256),
        compute_capabilities=((6, 0), (12, 1)),
        value_head_dim_differs=True,
        gqa=True,
    )

    def missing(self) -> str:
        """Not installed, of another version, without its extension, or with other arguments."""
        return kernel.missing()

    def kernel_version(self) -> str:
        """That of xFormers."""
        return kernel.PACKAGE.version

    def probe(self, device: DeviceInfo) -> Availability:
        """As of every CUDA kernel; the version also names the operators that were chosen."""
        found = super().probe(device)
        if not found.usable:
            return found
        where = torch.device("cuda", device.index or 0)
        names = kernel.chosen(where, self.trial_dtype)
        return replace(found, version=f"{found.version} ({names})")

    def priority(self, device: DeviceInfo) -> int:
        """Before PyTorch's memory-efficient kernel on Volta and Turing, else behind it."""
        major, _ = device.compute_capability or (0, 0)
        return 110 if major == 7 else 90

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        """What no operator of xFormers does on the GPU that is asked about."""
        found = problem.device_info.compute_capability
        if found is None:
            return
        at = f"on compute capability {found[0]}.{found[1]}"
        if problem.dtype == "bfloat16" and found < FLASH_FIRST:
            yield f"dtype bfloat16 {at} (supported: from 8.0)"
        if problem.mask is MaskCase.BAND and found < FLASH_FIRST:
            yield f"mask band {at} (supported: from 8.0)"
        if found > CUTLASS_LAST or problem.mask is MaskCase.BAND:
            yield from _flash_reasons(problem, at)
        width = max(problem.head_dims.values())
        small = (8, 6) <= found <= (8, 9) or found >= (12, 0)
        if small and width > 192 and problem.needs_backward and problem.dtype != "float32":
            yield f"a gradient with head dimension {width} {at} (supported: 1..192)"

    def flash_forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        *,
        call: Call,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        """The log-sum-exp may come with its rows rounded up."""
        group = query.shape[2] // key.shape[2]
        out, lse = kernel.PACKAGE.load().memory_efficient_attention_forward_requires_grad(
            query=query,
            key=_repeated(key, group),
            value=_repeated(value, group),
            attn_bias=kernel.bias(call, key.shape[1]),
            p=0.0,
            scale=scale,
        )
        return out, lse

    def flash_backward(
        self,
        grad_out: Float[Tensor, "B Lq H D"],
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        out: Float[Tensor, "B Lq H D"],
        lse: Float[Tensor, "B H Lq"],
        *,
        call: Call,
        scale: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The operators read `out` as contiguous; xFormers rounds the rows up with +inf."""
        group = query.shape[2] // key.shape[2]
        dq, dk, dv = kernel.PACKAGE.load().memory_efficient_attention_backward(
            grad=grad_out.contiguous(),
            output=out.contiguous(),
            lse=lse,
            query=query,
            key=_repeated(key, group),
            value=_repeated(value, group),
            attn_bias=kernel.bias(call, key.shape[1]),
            p=0.0,
            scale=scale,
        )
        return dq, _summed(dk, group), _summed(dv, group)


def _flash_reasons(problem: Problem, at: str) -> Iterable[str]:
    """Where only FlashAttention's operators are left."""
    what = "a band" if problem.mask is MaskCase.BAND else "attention"
    if problem.dtype == "float32":
        yield f"{what} in float32 {at} (supported: bfloat16, float16)"
    if problem.deterministic and problem.needs_backward:
        yield f"a deterministic gradient of {what} {at} (supported: none)"


def _repeated(x: Float[Tensor, "B L Hkv D"], group: int) -> Float[Tensor, "B L H D"]:
    return x if group == 1 else x.repeat_interleave(group, dim=2)


def _summed(x: Float[Tensor, "B L H D"], group: int) -> Float[Tensor, "B L Hkv D"]:
    return x if group == 1 else torch.unflatten(x, 2, (-1, group)).sum(3, dtype=torch.float32)
