"""The provider `sdpa-cudnn`: cuDNN's attention, called by PyTorch."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import torch
from ringspan.contracts import Capabilities, DeviceInfo, Grads, HeadDims, Mask, MaskCase, TileOutput
from ringspan.contracts.adapters.cuda import CudaKernel

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["SdpaCudnn"]

OLDEST_CUDNN = 91501
"""Older ones are wrong where a length is no multiple of 128 (pytorch #169849)."""


class SdpaCudnn(CudaKernel):
    """`aten::_scaled_dot_product_cudnn_attention` and its backward.

    Never with a mask tensor, with which cuDNN's query gradient can be NaN (pytorch #196678).
    Not deterministic. A single key, which cuDNN refuses, is given as two halves.
    """

    name: ClassVar[str] = "sdpa-cudnn"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        masks=frozenset({MaskCase.FULL, MaskCase.CAUSAL}),
        head_dims=HeadDims(1, 128),
        compute_capabilities=((8, 0), (12, 1)),
        value_head_dim_differs=True,
        gqa=True,
        deterministic=False,
    )

    def missing(self) -> str:
        """PyTorch can be built without cuDNN, or run with an old one."""
        if not torch.backends.cudnn.is_available():  # type: ignore[no-untyped-call]
            return f"torch {torch.__version__} has no cuDNN"
        version = torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
        if version < OLDEST_CUDNN:
            return f"cuDNN {version} (supported: from {OLDEST_CUDNN})"
        return ""

    def priority(self, device: DeviceInfo) -> int:
        """Before flash on Hopper and later, behind it on Ampere and Ada."""
        return 300 if (device.compute_capability or (0, 0)) >= (9, 0) else 200

    def kernel_forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """The operator works on `[B, H, L, D]`, and its log-sum-exp is `[B, H, Lq, 1]`."""
        single = key.shape[1] == 1
        if single:
            key, value = _twice(key), _twice(value)
        out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            None,
            True,
            0.0,
            mask.case is MaskCase.CAUSAL and not single,
            False,
            scale=scale,
        )
        lse = lse.reshape(lse.shape[:3])
        return TileOutput(out.transpose(1, 2), lse - math.log(2) if single else lse)

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
        single = key.shape[1] == 1
        if single:
            key, value, lse = _twice(key), _twice(value), lse + math.log(2)
        seed = offset = torch.empty((), dtype=torch.int64, device=query.device)
        dq, dk, dv = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            grad_out.transpose(1, 2),
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            out.transpose(1, 2),
            lse[..., None],
            seed,
            offset,
            None,
            None,
            None,
            query.shape[1],
            key.shape[1],
            0.0,
            mask.case is MaskCase.CAUSAL and not single,
            scale=scale,
        )
        dq, dk, dv = (x.transpose(1, 2) for x in (dq, dk, dv))
        return Grads(dq, _once(dk), _once(dv)) if single else Grads(dq, dk, dv)


def _twice(x: Float[Tensor, "B 1 H D"]) -> Float[Tensor, "B 2 H D"]:
    """One key as two equal ones, each with half the weight: the same output, `lse + log 2`."""
    return x.expand(-1, 2, -1, -1).contiguous()


def _once(x: Float[Tensor, "B 2 H D"]) -> Float[Tensor, "B 1 H D"]:
    return x.sum(1, keepdim=True, dtype=torch.float32)
