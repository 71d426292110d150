"""The provider `sdpa-flash`: the FlashAttention 2 kernels inside PyTorch."""

from __future__ import annotations

from dataclasses import dataclass
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
    """`aten::_flash_attention_forward` and `_backward`, for tiles of one length and of many.

    Limits are those of PyTorch's own dispatcher (`sdp_utils.cpp`); the query's gradient is
    summed by atomics, so the backward is declared not deterministic.
    """

    name: ClassVar[str] = "sdpa-flash"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        masks=frozenset({MaskCase.FULL, MaskCase.CAUSAL, MaskCase.BAND}),
        head_dims=HeadDims(1, 256),
        compute_capabilities=((8, 0), (12, 1)),
        value_head_dim_differs=True,
        gqa=True,
        ragged=True,
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
        """With cumulative lengths the operator takes rows without a batch, and so its results."""
        call = _Call.of(mask, query.shape[1], key.shape[1])
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            *call.rows(query, key, value),
            *call.lengths,
            0.0,
            call.causal,
            False,
            scale=scale,
            window_size_left=call.left,
            window_size_right=call.right,
        )
        return TileOutput(*call.tiles(out, lse))

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
        """The state of the random generator is not read without dropout: any tensors will do."""
        call = _Call.of(mask, query.shape[1], key.shape[1])
        rng_state = torch.empty(2, dtype=torch.uint64, device=query.device)
        unused = torch.empty((), dtype=torch.uint64, device=query.device)
        grads = torch.ops.aten._flash_attention_backward(
            *call.rows(grad_out, query, key, value, out, lse),
            *call.lengths,
            0.0,
            call.causal,
            rng_state,
            unused,
            scale=scale,
            window_size_left=call.left,
            window_size_right=call.right,
        )
        return Grads(*call.tiles(*grads))


@dataclass(frozen=True, slots=True)
class _Call:
    """What both operators are told about a mask."""

    lengths: tuple[Tensor | None, Tensor | None, int, int]
    """Cumulative lengths of queries and of keys where there are many, and the longest."""
    causal: bool
    left: int | None
    right: int | None

    @classmethod
    def of(cls, mask: Mask, queries: int, keys: int) -> _Call:
        """A band is said from the last query and key on, where the kernel's diagonal ends."""
        causal = mask.case is MaskCase.CAUSAL
        if mask.lengths is not None:
            given = mask.lengths
            # A longest of one makes the kernel lay out grouped heads, and their log-sum-exp, as
            # rows; it only has to be long enough.
            longest = max(given.query_longest, 2)
            lengths = (given.query_bounds, given.key_bounds, longest, given.key_longest)
            return cls(lengths, causal, None, None)
        dense = (None, None, queries, keys)
        if mask.case is not MaskCase.BAND:
            return cls(dense, causal, None, None)
        return cls(dense, False, mask.left + keys - queries, mask.right - (keys - queries))

    def rows(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Without the batch of one that tiles of many lengths have."""
        return tensors if self.lengths[0] is None else tuple(x[0] for x in tensors)

    def tiles(self, *results: Tensor) -> tuple[Tensor, ...]:
        """The other way round."""
        return results if self.lengths[0] is None else tuple(x[None] for x in results)
