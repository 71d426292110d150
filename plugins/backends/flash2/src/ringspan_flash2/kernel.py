"""The functions of flash-attn 2 that are called, in the ways its versions take them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from ringspan.contracts.adapters.package import KernelPackage, parameters

if TYPE_CHECKING:
    from collections.abc import Callable

    from ringspan.contracts.adapters.flash import Call
    from torch import Tensor

__all__ = ["PACKAGE", "missing", "out_and_lse", "tiles", "window"]

_BOTH = frozenset({"q", "k", "v", "dropout_p", "softmax_scale", "causal", "softcap"}) | {
    "alibi_slopes"
}
_BACKWARD = frozenset({"dout", "out", "softmax_lse", "dq", "dk", "dv", "deterministic"})
_TILES = frozenset({"cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"})

PACKAGE = KernelPackage(
    distribution="flash-attn",
    module="flash_attn.flash_attn_interface",
    remedy='pip install --no-build-isolation "flash-attn>=2.6,<3", beside the torch in use',
    at_least="2.6",
    below="3",
    calls={
        "_flash_attn_forward": _BOTH | {"return_softmax"},
        "_flash_attn_varlen_forward": _BOTH | _TILES | {"return_softmax"},
        "_flash_attn_backward": _BOTH | _BACKWARD,
        "_flash_attn_varlen_backward": _BOTH | _TILES | _BACKWARD,
    },
)


def missing() -> str:
    """Why flash-attn cannot be called here; empty where it can."""
    if lack := PACKAGE.missing():
        return lack
    module = PACKAGE.load()
    for name in PACKAGE.calls:
        taken = parameters(getattr(module, name))
        if not ("window_size" in taken or {"window_size_left", "window_size_right"} <= taken):
            return f"{name} of flash-attn {PACKAGE.version} takes no window"
    return ""


def window(function: Callable[..., Any], call: Call) -> dict[str, Any]:
    """The window as `function` takes it: a pair before version 2.7, two arguments since."""
    if _takes_pair(function):
        return {"window_size": call.window}
    left, right = call.window
    return {"window_size_left": left, "window_size_right": right}


@functools.cache
def _takes_pair(function: Callable[..., Any]) -> bool:
    return "window_size" in parameters(function)


def tiles(call: Call) -> dict[str, Any]:
    """Where tiles of many lengths lie, as the functions for them take it."""
    assert call.lengths is not None
    return {
        "cu_seqlens_q": call.lengths.query_bounds,
        "cu_seqlens_k": call.lengths.key_bounds,
        "max_seqlen_q": call.lengths.query_longest,
        "max_seqlen_k": call.lengths.key_longest,
    }


def out_and_lse(results: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """What a forward returned: before version 2.7 its padded inputs lie between the two."""
    return results[0], results[5 if len(results) == 8 else 1]
