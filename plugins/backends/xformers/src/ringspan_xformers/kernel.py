"""The functions of xFormers that are called, and what has to be there for them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import torch
from ringspan.contracts.adapters.package import KernelPackage

if TYPE_CHECKING:
    from ringspan.contracts.adapters.flash import Call

__all__ = ["PACKAGE", "bias", "chosen", "missing"]

_BOTH = frozenset({"query", "key", "value", "attn_bias", "p", "scale"})

PACKAGE = KernelPackage(
    distribution="xformers",
    module="xformers.ops.fmha",
    remedy='pip install "xformers>=0.0.30", a build for the torch and the CUDA in use',
    at_least="0.0.30",
    below="0.1",
    calls={
        "memory_efficient_attention_forward_requires_grad": _BOTH,
        "memory_efficient_attention_backward": _BOTH | {"grad", "output", "lse"},
    },
)


def missing() -> str:
    """Why xFormers cannot be called here; empty where it can."""
    return PACKAGE.missing() or _without_extension() or _without_bias()


def bias(call: Call, keys: int) -> Any:
    """What hides keys, as the class of xFormers that says it; None: nothing."""
    masks = PACKAGE.load().attn_bias
    if call.causal:
        return masks.LowerTriangularMask()
    if call.left is None and call.right is None:
        return None
    # A window as wide as the keys is none.
    left, right = (keys if x is None else x for x in (call.left, call.right))
    return masks.LocalAttentionFromBottomRightMask(window_left=left, window_right=right)


def chosen(device: torch.device, dtype: torch.dtype) -> str:
    """The operators that xFormers itself chooses for a small causal problem, forward and back."""
    fmha = PACKAGE.load()
    if not (hasattr(fmha, "_dispatch_fw") and hasattr(fmha, "_dispatch_bw")):
        return "operators not named by this version"
    x = torch.empty(1, 16, 2, 16, device=device, dtype=dtype)
    inputs = fmha.Inputs(query=x, key=x, value=x, attn_bias=fmha.attn_bias.LowerTriangularMask())
    forward, backward = fmha._dispatch_fw(inputs, True), fmha._dispatch_bw(inputs, None)
    return f"{forward.NAME}, {backward.NAME}"


def _without_extension() -> str:
    """Without its compiled part, xFormers is imported all the same, and refuses every GPU."""
    library = importlib.import_module("xformers._cpp_lib")
    if library._built_with_cuda:
        return ""
    error = library._cpp_library_load_exception
    why = "it was built without CUDA" if error is None else " ".join(str(error).split())
    return f"xformers {PACKAGE.version} has no CUDA extension here: {why}"


def _without_bias() -> str:
    masks = getattr(PACKAGE.load(), "attn_bias", None)
    for name in ("LowerTriangularMask", "LocalAttentionFromBottomRightMask"):
        if not hasattr(masks, name):
            return f"xformers {PACKAGE.version} has no {name}"
    return ""
