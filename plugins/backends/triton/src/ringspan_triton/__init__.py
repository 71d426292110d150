"""Attention kernels in Triton that read and write rows where they lie."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringspan.contracts import AttentionBackend, hookimpl

from ringspan_triton.backend import Triton

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Triton", "ringspan_attention_backends"]


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    """Offers `triton`."""
    return [Triton()]
