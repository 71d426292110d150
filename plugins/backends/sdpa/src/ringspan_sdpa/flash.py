"""The provider `sdpa-flash`: the FlashAttention 2 kernels inside PyTorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import torch
from ringspan.contracts import Capabilities, DeviceInfo, HeadDims, MaskCase, Problem
from ringspan.contracts.adapters.flash import Call, FlashKernel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["SdpaFlash"]


class SdpaFlash(FlashKernel):
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

    def flash_forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, call: Call, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Without cumulative lengths the operator is dense and its log-sum-exp `[B, H, Lq]`."""
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            query,
            key,
            value,
            *_lengths(call, query, key),
            0.0,
            call.causal,
            False,
            scale=scale,
            **_window(call),
        )
        return out, lse

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
        """The state of the random generator is not read without dropout: any tensors will do."""
        rng_state = torch.empty(2, dtype=torch.uint64, device=query.device)
        unused = torch.empty((), dtype=torch.uint64, device=query.device)
        dq, dk, dv = torch.ops.aten._flash_attention_backward(
            grad_out,
            query,
            key,
            value,
            out,
            lse,
            *_lengths(call, query, key),
            0.0,
            call.causal,
            rng_state,
            unused,
            scale=scale,
            **_window(call),
        )
        return dq, dk, dv


def _lengths(
    call: Call, query: Tensor, key: Tensor
) -> tuple[Tensor | None, Tensor | None, int, int]:
    """Cumulative lengths of queries and keys, and the longest of each."""
    given = call.lengths
    if given is None:
        return None, None, query.shape[1], key.shape[1]
    # Where the longest is one, the operator lays out grouped heads as rows. It only has to be
    # long enough.
    return given.query_bounds, given.key_bounds, max(given.query_longest, 2), given.key_longest


def _window(call: Call) -> dict[str, int]:
    left, right = call.window
    return {"window_size_left": left, "window_size_right": right}
