"""The provider `triton`."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ringspan.contracts import (
    AttentionBackend,
    Availability,
    Capabilities,
    DeviceInfo,
    Grads,
    HeadDims,
    Mask,
    MaskCase,
    TileOutput,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch
    from ringspan.contracts import Piece, Placed
    from torch import Tensor

__all__ = ["Triton"]


class Triton(AttentionBackend):
    """Attention, block-sparse attention, gathers and merges by kernels written in Triton."""

    name: ClassVar[str] = "triton"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda", "cpu"}),
        dtypes=frozenset({"float32", "bfloat16", "float16"}),
        masks=frozenset(MaskCase),
        head_dims=HeadDims(maximum=256),
    )

    def probe(self, device: DeviceInfo) -> Availability:
        """Not yet usable."""
        return Availability.no("its kernels are not written yet")

    def priority(self, device: DeviceInfo) -> int:
        """Behind PyTorch's own kernels on a GPU, and never by itself on a CPU."""
        return 60 if device.type == "cuda" else -100

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, mask: Mask, scale: float
    ) -> TileOutput:
        """Attention of each tile on its own, with its log-sum-exp."""
        raise NotImplementedError

    def backward(
        self,
        grad_out: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        out: Tensor,
        lse: Tensor,
        *,
        mask: Mask,
        scale: float,
    ) -> Grads:
        """This tile's share of the gradients, given the final `out` and `lse`."""
        raise NotImplementedError

    def gather(self, *placed: Placed) -> tuple[Tensor, ...]:
        """The rows as contiguous `[B * T, L, K * G, D]`."""
        from ringspan_triton.gather import gather

        return gather(*placed)

    def merge(
        self,
        pieces: Sequence[Piece],
        shape: tuple[int, int, int, int],
        *,
        dtype: torch.dtype,
        sink: Tensor | None = None,
        base: Piece | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """All pieces as one tensor `[B, N, H, D]`, whose every row reads its pieces once."""
        from ringspan_triton.merge import merge

        return merge(pieces, shape, dtype=dtype, sink=sink, base=base)
