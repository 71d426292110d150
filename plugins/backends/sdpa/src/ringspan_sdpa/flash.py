"""The provider `sdpa-flash`: the FlashAttention 2 kernels inside PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from ringspan.contracts import (
    Capabilities,
    DeviceInfo,
    Grads,
    HeadDims,
    Mask,
    MaskCase,
    Problem,
    TileOutput,
)
from ringspan.contracts.adapters.cuda import CudaKernel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Float
    from torch import Tensor

__all__ = ["SdpaFlash"]


class SdpaFlash(CudaKernel):
    """`aten::_flash_attention_forward` and `_backward`, dense.

    Limits are those of PyTorch's own dispatcher (`sdp_utils.cpp`); the query's gradient is
    summed by atomics, so the backward is declared not deterministic.
    """

    name: ClassVar[str] = "sdpa-flash"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        masks=frozenset({MaskCase.FULL, MaskCase.CAUSAL}),
        head_dims=HeadDims(1, 256),
        compute_capabilities=((8, 0), (12, 1)),
        value_head_dim_differs=True,
        gqa=True,
        deterministic=False,
    )

    def missing(self) -> str:
        """PyTorch can be built without these kernels."""
        if torch.backends.cuda.is_flash_attention_available():
            return ""
        return f"torch {torch.__version__} is built without flash attention"

    def priority(self, device: DeviceInfo) -> int:
        """First on Ampere and Ada; behind cuDNN on Hopper and later."""
        return 300 if (device.compute_capability or (0, 0)) < (9, 0) else 200

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

    def kernel_forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """Without cumulative lengths the operator is dense and its log-sum-exp `[B, H, Lq]`."""
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            None,
            None,
            query.shape[1],
            key.shape[1],
            0.0,
            mask.case is MaskCase.CAUSAL,
            False,
            scale=scale,
        )
        return TileOutput(out, lse)

    def kernel_backward(
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
        """The state of the random generator is not read without dropout: any tensor will do."""
        rng_state = torch.zeros(2, dtype=torch.uint64, device=query.device)
        unused = torch.zeros((), dtype=torch.uint64, device=query.device)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            grad_out,
            query,
            key,
            value,
            out,
            lse,
            None,
            None,
            query.shape[1],
            key.shape[1],
            0.0,
            mask.case is MaskCase.CAUSAL,
            rng_state,
            unused,
            scale=scale,
        )
        return Grads(dq, dk, dv)
