"""The two functions of flash-attn-4 that are called."""

from __future__ import annotations

from ringspan.contracts.adapters.package import KernelPackage

__all__ = ["PACKAGE"]

_BOTH = frozenset(
    {
        "q",
        "k",
        "v",
        "softmax_scale",
        "causal",
        "window_size_left",
        "window_size_right",
        "cu_seqlens_q",
        "cu_seqlens_k",
        "max_seqlen_q",
        "max_seqlen_k",
    }
)

PACKAGE = KernelPackage(
    distribution="flash-attn-4",
    module="flash_attn.cute.interface",
    remedy='pip install "flash-attn-4>=4.0.0b32,<4.0.0b37"',
    at_least="4.0.0b32",
    below="4.0.0b37",
    calls={
        "_flash_attn_fwd": _BOTH | {"num_splits", "return_lse"},
        "_flash_attn_bwd": _BOTH | {"out", "dout", "lse", "deterministic"},
    },
)
