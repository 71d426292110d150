"""PyTorch's FlexAttention: every mask, compiled for the GPU at hand."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import AttentionBackend, hookimpl

from ringspan_flex.backend import Flex

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Flex", "ringspan_attention_backends"]


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers `flex`."""
    return [Flex()]
