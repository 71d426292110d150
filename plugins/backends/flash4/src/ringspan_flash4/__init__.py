"""FlashAttention 4, from the package flash-attn-4, for Hopper and Blackwell."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import AttentionBackend, hookimpl

from ringspan_flash4.backend import Flash4

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Flash4", "ringspan_attention_backends"]


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers the one provider of this distribution."""
    return [Flash4()]
