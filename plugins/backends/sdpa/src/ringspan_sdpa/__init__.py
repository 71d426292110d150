"""The attention kernels that ship inside PyTorch, one provider per kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import AttentionBackend, hookimpl

from ringspan_sdpa.cpu import SdpaCpu

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["SdpaCpu", "ringspan_attention_backends"]


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers `sdpa-cpu`."""
    return [SdpaCpu()]
