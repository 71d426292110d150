"""The provider `sdpa-efficient`: the memory-efficient CUTLASS kernels inside PyTorch."""

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

from ringspan_sdpa.cutlass import cutlass_backward, cutlass_forward

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Float
    from torch import Tensor

__all__ = ["SdpaEfficient"]


class SdpaEfficient(CudaKernel):
    """`aten::_efficient_attention_forward` and `_backward`: float32 too, and old GPUs.

    Its windows are causal only, and their backward is not trusted by those who wrote it, so it
    takes no bands.
    """

    name: ClassVar[str] = "sdpa-efficient"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"float32", "bfloat16", "float16"}),
        masks=frozenset({MaskCase.FULL, MaskCase.CAUSAL}),
        head_dims=HeadDims(1, 256),
        compute_capabilities=((5, 0), (12, 1)),
        value_head_dim_differs=True,
        gqa=True,
        ragged=True,
    )
    trial_dtype: ClassVar[torch.dtype] = torch.float32

    def missing(self) -> str:
        """Every CUDA build has these kernels; the trial finds one that has not."""
        return ""

    def priority(self, device: DeviceInfo) -> int:
        """Behind the kernels that take 16-bit inputs only, above plain products."""
        return 100

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        """bfloat16 needs Ampere."""
        found = problem.device_info.compute_capability
        if problem.dtype == "bfloat16" and found is not None and found < (8, 0):
            yield (
                f"dtype bfloat16 on compute capability {found[0]}.{found[1]} (supported: from 8.0)"
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
        """The operator for tiles of one length, or of many."""
        causal = mask.case is MaskCase.CAUSAL
        return cutlass_forward(query, key, value, causal=causal, scale=scale, lengths=mask.lengths)

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
        """Likewise."""
        tensors = (grad_out, query, key, value, out, lse)
        causal = mask.case is MaskCase.CAUSAL
        return cutlass_backward(*tensors, causal=causal, scale=scale, lengths=mask.lengths)
