"""The module of FlashAttention 3: what is called of it, and what its build leaves out."""

from __future__ import annotations

import importlib

from ringspan.contracts.adapters.package import KernelPackage

__all__ = ["PACKAGE", "left_out", "missing"]

_BOTH = frozenset({"q", "k", "v", "softmax_scale", "window_size_left", "window_size_right"})
_TILES = frozenset({"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"})
_GRADS = frozenset({"dout", "out", "softmax_lse", "dq", "dk", "dv", "deterministic"})

PACKAGE = KernelPackage(
    distribution="flash-attn-3",
    module="flash_attn_interface",
    remedy=(
        "build it from the folder `hopper` of github.com/Dao-AILab/flash-attention, beside the "
        "torch in use, and import it before xformers, which has operators of the same names"
    ),
    calls={
        "_flash_attn_forward": _BOTH | _TILES | {"causal", "num_splits"},
        "_flash_attn_backward": _BOTH | _TILES | _GRADS | {"is_causal"},
    },
)

_NEEDED = {
    "FLASHATTENTION_DISABLE_BACKWARD": "gradients",
    "FLASHATTENTION_DISABLE_LOCAL": "windows",
    "FLASHATTENTION_DISABLE_VARLEN": "tiles of many lengths",
    "FLASHATTENTION_DISABLE_FP16": "float16",
    "FLASHATTENTION_DISABLE_HDIM256": "head dimension 256",
}


def missing() -> str:
    """Why the module cannot be called here; empty where it can."""
    if lack := PACKAGE.missing():
        return lack
    lacking = [what for flag, what in _NEEDED.items() if left_out(flag)]
    return f"flash_attn_interface is built without {', '.join(lacking)}" if lacking else ""


def left_out(flag: str) -> bool:
    """Whether the build says of itself that it leaves something out; old builds say nothing."""
    try:
        config = importlib.import_module("flash_attn_config")
    except ModuleNotFoundError:
        return False
    return bool(config.CONFIG["build_flags"].get(flag, False))
