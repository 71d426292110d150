"""The provider `sdpa-efficient-bias`: any mask on the memory-efficient kernels."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from ringspan.contracts import Capabilities, DeviceInfo, Grads, Mask, MaskCase, TileOutput
from ringspan.contracts.adapters import arguments, cuda

from ringspan_sdpa.cutlass import cutlass_backward, cutlass_forward, repeated
from ringspan_sdpa.efficient import SdpaEfficient
from ringspan_sdpa.hidden import Hidden

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

__all__ = ["SdpaEfficientBias"]


class SdpaEfficientBias(SdpaEfficient):
    """`sdpa-efficient` with what hides keys as an additive bias, of bounded size.

    It computes every score, hidden or not, in as many calls as the bias is cut into. For float32
    and for GPUs that have no kernel with windows, curves or padded keys of its own.
    """

    name: ClassVar[str] = "sdpa-efficient-bias"
    capabilities: ClassVar[Capabilities] = replace(
        SdpaEfficient.capabilities,
        masks=frozenset(MaskCase) - {MaskCase.BAND},
        key_padding=True,
        ragged=False,
    )

    def priority(self, device: DeviceInfo) -> int:
        """Behind every kernel that skips what is hidden, above plain products."""
        return 30

    def attend(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """Calls of the kernel, each on as many tiles, heads and rows as its bias allows."""
        if _needs_no_bias(mask):
            return super().attend(query, key, value, mask=mask, scale=scale)
        q, k, v = (arguments.aligned(x) for x in (query, key, value))
        group = q.shape[2] // k.shape[2]
        k, v = repeated(k, group), repeated(v, group)
        hidden = _hidden(mask, q, k, group)
        out, causal = torch.empty_like(q), mask.case is MaskCase.CAUSAL
        lse = q.new_empty(hidden.shape[:3], dtype=arguments.lse_dtype(q.dtype))
        for where in hidden.parts(cuda.LARGEST_BATCH):
            bias, empty = hidden.bias(where)
            part, part_lse = cutlass_forward(
                q[where.rows], k[where.keys], v[where.keys], causal=causal, scale=scale, bias=bias
            )
            # The kernel averages the hidden keys of a row that sees none.
            out[where.rows] = part.masked_fill_(empty.transpose(1, 2)[..., None], 0.0)
            lse[where.lse] = part_lse.masked_fill_(empty, -torch.inf)
        return TileOutput(out, lse)

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
        """Gradients of keys and values are summed over rows and grouped heads in `lse`'s dtype."""
        if _needs_no_bias(mask):
            tensors = (grad_out, query, key, value, out, lse)
            return super().attend_backward(*tensors, mask=mask, scale=scale)
        dO, q, k, v, final = (arguments.aligned(x) for x in (grad_out, query, key, value, out))
        group = q.shape[2] // k.shape[2]
        k, v = repeated(k, group), repeated(v, group)
        hidden = _hidden(mask, q, k, group)
        dq, causal = torch.empty_like(q), mask.case is MaskCase.CAUSAL
        dk, dv = (torch.zeros_like(x, dtype=lse.dtype) for x in (k, v))
        for where in hidden.parts(cuda.LARGEST_BATCH):
            bias, _ = hidden.bias(where)
            grads = cutlass_backward(
                dO[where.rows],
                q[where.rows],
                k[where.keys],
                v[where.keys],
                final[where.rows],
                lse[where.lse],
                causal=causal,
                scale=scale,
                bias=bias,
            )
            dq[where.rows] = grads.query
            dk[where.keys] += grads.key
            dv[where.keys] += grads.value
        return Grads(dq, *(torch.unflatten(x, 2, (-1, group)).sum(3) for x in (dk, dv)))


def _needs_no_bias(mask: Mask) -> bool:
    return mask.case in (MaskCase.FULL, MaskCase.CAUSAL) and mask.key_seen is None


def _hidden(mask: Mask, query: Tensor, key: Tensor, group: int) -> Hidden:
    batch, rows, heads, _ = query.shape
    return Hidden.of(mask, (batch, heads, rows, key.shape[1]), group, query.dtype)
