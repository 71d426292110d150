"""FlashAttention 3, for Hopper, where its module is built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import AttentionBackend, hookimpl

from ringspan_flash3.backend import Flash3

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Flash3", "ringspan_attention_backends"]


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers the one provider of this distribution."""
    return [Flash3()]
