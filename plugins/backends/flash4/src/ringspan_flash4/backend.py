"""The provider `flash4`: FlashAttention 4, for Hopper and Blackwell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from ringspan.contracts import Capabilities, DeviceInfo, HeadDims, MaskCase, Problem
from ringspan.contracts.adapters.flash import Call, FlashKernel

from ringspan_flash4 import kernel

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

__all__ = ["Flash4"]

BLACKWELL = (10, 0)


class Flash4(FlashKernel):
    """`_flash_attn_fwd` and `_flash_attn_bwd` of `flash_attn.cute.interface`.

    They are called directly: torch's `activate_flash_attention_impl` takes apart two results
    where there are five.
    """

    name: ClassVar[str] = "flash4"
    remedy: ClassVar[str] = kernel.PACKAGE.remedy
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cuda"}),
        dtypes=frozenset({"bfloat16", "float16"}),
        masks=frozenset({MaskCase.FULL, MaskCase.CAUSAL, MaskCase.BAND}),
        head_dims=HeadDims(1, 256),
        compute_capabilities=((9, 0), (11, 0)),
        value_head_dim_differs=True,
        gqa=True,
        ragged=True,
    )

    def missing(self) -> str:
        """Not installed, of another version, without what it imports, or with other arguments."""
        return kernel.PACKAGE.missing()

    def kernel_version(self) -> str:
        """That of flash-attn-4."""
        return kernel.PACKAGE.version

    def priority(self, device: DeviceInfo) -> int:
        """First where it runs."""
        return 500

    def widths(self, head_dim: int, value_head_dim: int, device: torch.device) -> tuple[int, int]:
        """Blackwell's kernels have few widths above 128."""
        equal = super().widths(head_dim, value_head_dim, device)
        if torch.cuda.get_device_capability(device) < BLACKWELL or equal[0] <= 128:
            return equal
        return _widest(head_dim, value_head_dim)

    def extra_reasons(self, problem: Problem) -> Iterable[str]:
        """Blackwell's kernels for the widest heads are not known to do everything."""
        dims = (problem.head_dim, problem.value_head_dim)
        found = problem.device_info.compute_capability
        if found is None or found < BLACKWELL or max(dims) <= 128 or _widest(*dims) != (256, 256):
            return
        where = f"head dimensions {dims} on compute capability {found[0]}.{found[1]}"
        supported = "(supported: 1..128, or up to 192 with values up to 128)"
        if problem.mask is MaskCase.BAND:
            yield f"a band with {where} {supported}"
        if problem.deterministic and problem.needs_backward:
            yield f"a deterministic gradient with {where} {supported}"

    def flash_forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, call: Call, scale: float
    ) -> tuple[Tensor, Tensor]:
        """One split: several would be summed in whatever order they end."""
        with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
            out, lse, *_ = kernel.PACKAGE.load()._flash_attn_fwd(
                q=query,
                k=key,
                v=value,
                num_splits=1,
                return_lse=True,
                **_options(call, scale),
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
        """The kernel asks for the current device's architecture, so that is the tensors'."""
        with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
            dq, dk, dv, *_ = kernel.PACKAGE.load()._flash_attn_bwd(
                q=query,
                k=key,
                v=value,
                out=out,
                dout=grad_out,
                lse=lse,
                deterministic=torch.are_deterministic_algorithms_enabled(),
                **_options(call, scale),
            )
        return dq, dk, dv


def _widest(head_dim: int, value_head_dim: int) -> tuple[int, int]:
    """The widths above 128 that Blackwell's kernels have."""
    return (192, 128) if head_dim <= 192 and value_head_dim <= 128 else (256, 256)


def _options(call: Call, scale: float) -> dict[str, Any]:
    options = {
        "softmax_scale": scale,
        "causal": call.causal,
        "window_size_left": call.left,
        "window_size_right": call.right,
    }
    if call.lengths is None:
        return options
    return options | {
        "cu_seqlens_q": call.lengths.query_bounds,
        "cu_seqlens_k": call.lengths.key_bounds,
        "max_seqlen_q": call.lengths.query_longest,
        "max_seqlen_k": call.lengths.key_longest,
    }
