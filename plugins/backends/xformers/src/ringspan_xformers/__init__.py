"""The memory-efficient attention of xFormers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import AttentionBackend, hookimpl

from ringspan_xformers.backend import XFormers

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["XFormers", "ringspan_attention_backends"]


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers the one provider of this distribution."""
    return [XFormers()]
