"""A plugin whose kernels take a set time and compute nothing: what is left is the schedule."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from ringspan.contracts import (
    AttentionBackend,
    Availability,
    Capabilities,
    DeviceInfo,
    Grads,
    MaskCase,
    TileOutput,
    hookimpl,
)

__all__ = ["Timed"]


class Timed(AttentionBackend):
    """Sleeps for each query-key pair, so that the processor is free for whatever else there is."""

    name: ClassVar[str] = "timed"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cpu"}), dtypes=frozenset({"float32"}), masks=frozenset({MaskCase.FULL})
    )
    forward_seconds = backward_seconds = 0.0
    """Of one pair."""

    def probe(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def priority(self, device: DeviceInfo) -> int:
        return -1000

    def forward(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, **options: Any
    ) -> TileOutput:
        _sleep(self.forward_seconds, query, key)
        batch, rows, heads, _ = query.shape
        out = query.new_zeros(batch, rows, heads, value.shape[3])
        return TileOutput(out, query.new_zeros(batch, heads, rows))

    def backward(
        self,
        grad_out: torch.Tensor,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *saved: torch.Tensor,
        **options: Any,
    ) -> Grads:
        _sleep(self.backward_seconds, query, key)
        return Grads(*(torch.zeros_like(x) for x in (query, key, value)))


def _sleep(seconds: float, query: torch.Tensor, key: torch.Tensor) -> None:
    batch, rows, heads, _ = query.shape
    time.sleep(seconds * batch * heads * rows * key.shape[1])


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    return [Timed()]
