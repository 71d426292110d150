"""The readable reference backend: plain matrix products, any mask, any device."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import AttentionBackend, hookimpl

from ringspan_manual.backend import Manual

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Manual", "ringspan_attention_backends"]


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers `manual`."""
    return [Manual()]
