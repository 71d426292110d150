"""The provider `flash2`: FlashAttention 2 as its own package has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ringspan.contracts import Capabilities, DeviceInfo, HeadDims, MaskCase, Problem
from ringspan.contracts.adapters.flash import Call, FlashKernel

from ringspan_flash2 import kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["Flash2"]


class Flash2(FlashKernel):
    """`_flash_attn_forward` and `_flash_attn_backward` of flash-attn, dense and `varlen`.

    The backward is deterministic where torch is told to be, at some cost in time and memory.
    """

    name: ClassVar[str] = "flash2"
    remedy: ClassVar[str] = kernel.PACKAGE.remedy
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        masks=frozenset({MaskCase.FULL, MaskCase.CAUSAL, MaskCase.BAND}),
        head_dims=HeadDims(1, 256),
        compute_capabilities=((8, 0), (12, 1)),
        value_head_dim_differs=True,
        gqa=True,
        ragged=True,
    )

    def missing(self) -> str:
        """Not installed, of another version, built for another torch, or with other arguments."""
        return kernel.missing()

    def kernel_version(self) -> str:
        """That of flash-attn."""
        return kernel.PACKAGE.version

    def priority(self, device: DeviceInfo) -> int:
        """First on Ampere and Ada; behind cuDNN on Hopper and later."""
        return 350 if (device.compute_capability or (0, 0)) < (9, 0) else 250

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        """GPUs with less shared memory than an A100 lack some backward kernels."""
        width = max(problem.head_dims.values())
        found = problem.device_info.compute_capability
        if found is None or not problem.needs_backward or width <= 192:
            return
        if (8, 6) <= found <= (8, 9) or found >= (12, 0):
            yield (
                f"a gradient with head dimension {width} on compute capability "
                f"{found[0]}.{found[1]} (supported: 1..192)"
            )

    def flash_forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, call: Call, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Without dropout, slopes or a cap on the scores."""
        module, options = kernel.PACKAGE.load(), self._options(call, scale)
        if call.lengths is None:
            function = module._flash_attn_forward
        else:
            function = module._flash_attn_varlen_forward
            options |= kernel.tiles(call)
        options |= kernel.window(function, call)
        results = function(q=query, k=key, v=value, return_softmax=False, **options)
        return kernel.out_and_lse(results)

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
        module, options = kernel.PACKAGE.load(), self._options(call, scale)
        if call.lengths is None:
            function = module._flash_attn_backward
        else:
            function = module._flash_attn_varlen_backward
            options |= kernel.tiles(call)
        options |= kernel.window(function, call)
        dq, dk, dv = (x.new_empty(x.shape) for x in (query, key, value))
        function(
            dout=grad_out,
            q=query,
            k=key,
            v=value,
            out=out,
            softmax_lse=lse,
            dq=dq,
            dk=dk,
            dv=dv,
            deterministic=torch.are_deterministic_algorithms_enabled(),
            **options,
        )
        return dq, dk, dv

    @staticmethod
    def _options(call: Call, scale: float) -> dict[str, Any]:
        return {
            "dropout_p": 0.0,
            "softmax_scale": scale,
            "causal": call.causal,
            "softcap": 0.0,
            "alibi_slopes": None,
        }
