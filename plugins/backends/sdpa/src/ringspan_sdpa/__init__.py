"""The attention kernels that ship inside PyTorch, one provider per kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import AttentionBackend, hookimpl

from ringspan_sdpa.biased import SdpaEfficientBias
from ringspan_sdpa.cpu import SdpaCpu
from ringspan_sdpa.cudnn import SdpaCudnn
from ringspan_sdpa.efficient import SdpaEfficient
from ringspan_sdpa.flash import SdpaFlash

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "SdpaCpu",
    "SdpaCudnn",
    "SdpaEfficient",
    "SdpaEfficientBias",
    "SdpaFlash",
    "ringspan_attention_backends",
]


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers one provider per kernel."""
    return [SdpaCpu(), SdpaCudnn(), SdpaFlash(), SdpaEfficient(), SdpaEfficientBias()]
