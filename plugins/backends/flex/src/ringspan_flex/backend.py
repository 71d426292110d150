"""The provider `flex`: PyTorch's FlexAttention."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import torch
from ringspan.contracts import (
    Availability,
    Capabilities,
    DeviceInfo,
    Grads,
    HeadDims,
    Mask,
    MaskCase,
    TileOutput,
)
from ringspan.contracts.adapters.cuda import LARGEST_BATCH, CudaKernel

from ringspan_flex.kernel import Shapes, compiled, gradients
from ringspan_flex.masks import Sizes, block_mask, kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jaxtyping import Float
    from torch import Tensor

    from ringspan_flex.kernel import Attention

__all__ = ["Flex"]


class Flex(CudaKernel):
    """FlexAttention with every mask, padded keys and tiles of many lengths.

    On a CPU it does not serve: compiled, FlexAttention has no log-sum-exp there, and uncompiled
    it holds all scores at once.
    """

    name: ClassVar[str] = "flex"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"float32", "bfloat16", "float16"}),
        masks=frozenset(MaskCase),
        head_dims=HeadDims(1, 256),
        compute_capabilities=((8, 0), (12, 1)),
        value_head_dim_differs=True,
        gqa=True,
        # One layout in memory, so that strides are no reason to compile again.
        strided=False,
        key_padding=True,
        ragged=True,
    )
    width_multiple: ClassVar[int] = 16

    def missing(self) -> str:
        """FlexAttention is compiled by Triton."""
        from torch.utils._triton import has_triton

        return "" if has_triton() else "Triton, which compiles FlexAttention, is not usable here"

    def probe(self, device: DeviceInfo) -> Availability:
        """Usable where a tiny forward and backward on the GPU agree with the formula."""
        if device.type == "cpu":
            return Availability.no(
                "device cpu (supported: cuda)",
                remedy="use sdpa: compiled, FlexAttention has no log-sum-exp on a CPU",
            )
        return super().probe(device)

    def priority(self, device: DeviceInfo) -> int:
        """Behind kernels that read rows where they lie, above plain products."""
        return 40 if device.type == "cuda" else -50

    def attend(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """Calls of the kernel, each on as many tiles as it takes, with their part of the mask."""
        parts = [
            self.kernel_forward(*some, mask=of_some, scale=scale)
            for some, of_some in _parts(mask, query, key, value)
        ]
        if len(parts) == 1:
            return parts[0]
        return TileOutput(*(torch.cat(part) for part in zip(*parts, strict=True)))

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
        """Calls of the kernel, each on as many tiles as it takes, with their part of the mask."""
        parts = [
            self.kernel_backward(*some, mask=of_some, scale=scale)
            for some, of_some in _parts(mask, grad_out, query, key, value, out, lse)
        ]
        if len(parts) == 1:
            return parts[0]
        return Grads(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def kernel_forward(
        self,
        query: Float[Tensor, "B Lq H D"],
        key: Float[Tensor, "B Lk Hkv D"],
        value: Float[Tensor, "B Lk Hkv D"],
        *,
        mask: Mask,
        scale: float,
    ) -> TileOutput:
        """The kernel's forward."""
        q, k, v = (x.transpose(1, 2) for x in (query, key, value))
        # Autocast would put the inputs into another dtype.
        with torch.autocast(query.device.type, enabled=False):
            attention = self.attention(mask, q, k, scale, trained=False)
            out, lse = attention(q, k, v, block_mask(mask, _sizes(q, k)), scale)
        return TileOutput(out.transpose(1, 2), lse)

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
        """The kernel's own gradients, of upstream gradients that stand for the final result."""
        dO, q, k, v, final = (x.transpose(1, 2) for x in (grad_out, query, key, value, out))
        with torch.autocast(query.device.type, enabled=False):
            attention = self.attention(mask, q, k, scale, trained=True)
            blocks = block_mask(mask, _sizes(q, k))
            found = gradients(attention, dO, q, k, v, final, lse, blocks, scale)
        return Grads(*(x.transpose(1, 2) for x in found))

    def attention(
        self, mask: Mask, query: Tensor, key: Tensor, scale: float, *, trained: bool
    ) -> Attention:
        """The compiled kernel for such tensors `[B, H, L, D]`."""
        sizes = _sizes(query, key)
        shapes = Shapes(
            mask=kind(mask),
            heads=sizes.heads,
            kv_heads=sizes.kv_heads,
            head_dim=query.shape[-1],
            dtype=query.dtype,
            device=query.device,
            scale=scale,
            special=sizes.special,
            trained=trained,
        )
        return compiled(shapes)


def _sizes(query: Float[Tensor, "B H Lq D"], key: Float[Tensor, "B Hkv Lk D"]) -> Sizes:
    batch, heads, queries, _ = query.shape
    return Sizes(batch, heads, key.shape[1], queries, key.shape[2], query.device)


def _parts(mask: Mask, *tensors: Tensor) -> Iterator[tuple[list[Tensor], Mask]]:
    """The tensors and the mask cut along the batch, each part short enough for a grid."""
    batch = tensors[0].shape[0]
    if batch <= LARGEST_BATCH:
        yield list(tensors), mask
        return
    for start in range(0, batch, LARGEST_BATCH):
        some = slice(start, start + LARGEST_BATCH)
        yield [x[some] for x in tensors], _part(mask, some)


def _part(mask: Mask, some: slice) -> Mask:
    """The mask of some tiles; what all tiles share stays whole."""

    def cut(x: Tensor | None, dims: int) -> Tensor | None:
        return x[some] if x is not None and x.dim() == dims and x.shape[0] > 1 else x

    return replace(
        mask,
        low=cut(mask.low, 3),
        high=cut(mask.high, 3),
        seen=cut(mask.seen, 4),
        key_seen=cut(mask.key_seen, 3),
    )
