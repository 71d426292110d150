"""FlashAttention 2, from the package flash-attn."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import AttentionBackend, hookimpl

from ringspan_flash2.backend import Flash2

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Flash2", "ringspan_attention_backends"]


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers the one provider of this distribution."""
    return [Flash2()]
