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

if TYPE_CHECKING:
    from collections.abc import Iterable

    from jaxtyping import Float
    from torch import Tensor

__all__ = ["SdpaEfficient"]

NO_MASK, CAUSAL_FROM_TOP_LEFT = 0, 1
LSE_MULTIPLE = 32
"""The kernel stores a log-sum-exp for this many rows at a time."""


class SdpaEfficient(CudaKernel):
    """`aten::_efficient_attention_forward` and `_backward`: float32 too, and old GPUs.

    The kernel has no grouped heads: keys and values are repeated, and their gradients summed in
    float32. Its backward reads `out` as contiguous.
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
        """The log-sum-exp comes with its rows rounded up, and is cut."""
        group = query.shape[2] // key.shape[2]
        out, lse, *_ = torch.ops.aten._efficient_attention_forward(
            query,
            _repeated(key, group),
            _repeated(value, group),
            None,
            None,
            None,
            None,
            None,
            0.0,
            CAUSAL_FROM_TOP_LEFT if mask.case is MaskCase.CAUSAL else NO_MASK,
            True,
            scale=scale,
        )
        return TileOutput(out, lse[..., : query.shape[1]].contiguous())

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
        """Rows that fill up the log-sum-exp are +inf, so that their weights are zero."""
        group = query.shape[2] // key.shape[2]
        filled = torch.nn.functional.pad(lse, (0, -lse.shape[-1] % LSE_MULTIPLE), value=torch.inf)
        # Without dropout the state of the random generator is not read.
        seed = offset = torch.zeros((), dtype=torch.int64)
        dq, dk, dv, _ = torch.ops.aten._efficient_attention_backward(
            grad_out,
            query,
            _repeated(key, group),
            _repeated(value, group),
            None,
            out.contiguous(),
            None,
            None,
            query.shape[1],
            key.shape[1],
            filled,
            0.0,
            seed,
            offset,
            CAUSAL_FROM_TOP_LEFT if mask.case is MaskCase.CAUSAL else NO_MASK,
            False,
            scale=scale,
            # Several splits of the keys add to the query's gradient in any order.
            num_splits_key=1 if torch.are_deterministic_algorithms_enabled() else None,
        )
        return Grads(dq, _summed(dk, group), _summed(dv, group))


def _repeated(x: Float[Tensor, "B L Hkv D"], group: int) -> Float[Tensor, "B L H D"]:
    return x if group == 1 else x.repeat_interleave(group, dim=2)


def _summed(x: Float[Tensor, "B L H D"], group: int) -> Float[Tensor, "B L Hkv D"]:
    return x if group == 1 else torch.unflatten(x, 2, (-1, group)).sum(3, dtype=torch.float32)
