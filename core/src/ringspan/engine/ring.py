"""Rows on their way between ranks: key/value rows out, their gradients back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ringspan.contracts.communicator import Exchange, Message, Pending
from ringspan.plan.steps import Parcel, Step

__all__ = ["Arrival", "Channel", "KeyValue", "Ring"]

_TAGS = 2**30


class KeyValue(NamedTuple):
    """Key and value rows `[B, N, H, D]`, `[B, N, H, Dv]`, or their gradients."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True)
class Channel:
    """An open exchange, and a number that all ranks of this call share with no other call."""

    exchange: Exchange
    call: int

    def tag(self, step: Step, *, grads: bool) -> int:
        """Tells calls, steps and directions apart, so that no rank takes another call's rows."""
        per_call = 2 * self.exchange.world_size
        return self.call % (_TAGS // per_call) * per_call + 2 * step.index + grads


@dataclass(frozen=True, slots=True)
class Arrival:
    """Rows that are being sent and received in one step."""

    rows: KeyValue
    sent: Tensor
    pending: Pending

    def wait(self) -> KeyValue:
        """The received rows, once they are here; they count one head each."""
        self.pending.wait()
        return self.rows


def _buffer(batch: int, rows: int, like: KeyValue, dtype: torch.dtype) -> tuple[Tensor, KeyValue]:
    """One message for keys and values, and its two parts as `[B, rows, 1, D]`."""
    head_dim, value_head_dim = like.key.shape[-1], like.value.shape[-1]
    flat = like.key.new_empty(batch * rows * (head_dim + value_head_dim), dtype=dtype)
    border = batch * rows * head_dim
    key, value = flat[:border], flat[border:]
    return flat, KeyValue(
        key.view(batch, rows, 1, head_dim), value.view(batch, rows, 1, value_head_dim)
    )


def _index(parcel: Parcel, device: torch.device) -> tuple[slice, Tensor, Tensor]:
    return (slice(None), parcel.rows.on(device), parcel.heads.on(device))


class Ring:
    """One call's messages over a channel."""

    def __init__(self, channel: Channel, local: KeyValue) -> None:
        self._channel = channel
        self._local = local

    def post_rows(self, step: Step) -> Arrival:
        """Sends the rows that `step.target` needs; receives those that this rank needs."""
        key, value = self._local
        batch = key.shape[0]
        sent, out = _buffer(batch, len(step.send), self._local, key.dtype)
        at = _index(step.send, key.device)
        out.key.squeeze(2).copy_(key[at])
        out.value.squeeze(2).copy_(value[at])
        received, rows = _buffer(batch, step.receive, self._local, key.dtype)
        pending = self._post(
            step.target, sent, step.source, received, tag=self._channel.tag(step, grads=False)
        )
        return Arrival(rows, sent, pending)

    def empty_grads(self, step: Step, dtype: torch.dtype) -> tuple[Tensor, KeyValue]:
        """A zeroed message for the gradients of the rows received in `step`."""
        flat, grads = _buffer(self._local.key.shape[0], step.receive, self._local, dtype)
        return flat.zero_(), grads

    def post_grads(self, step: Step, sent: Tensor) -> Arrival:
        """Returns the gradients of received rows to their owner; receives those of sent rows."""
        batch = self._local.key.shape[0]
        received, rows = _buffer(batch, len(step.send), self._local, sent.dtype)
        pending = self._post(
            step.source, sent, step.target, received, tag=self._channel.tag(step, grads=True)
        )
        return Arrival(rows, sent, pending)

    def add_grads(self, step: Step, arrival: Arrival, total: KeyValue) -> None:
        """Adds returned gradients to this rank's own, in place."""
        arrived = arrival.wait()
        at = _index(step.send, total.key.device)
        for mine, theirs in zip(total, arrived, strict=True):
            # Rows of a parcel are distinct, so reading and writing them loses nothing.
            mine[at] += theirs.squeeze(2)

    def _post(
        self, target: int, sent: Tensor, source: int, received: Tensor, *, tag: int
    ) -> Pending:
        return self._channel.exchange.post(
            [Message(target, sent, tag)] if sent.numel() else [],
            [Message(source, received, tag)] if received.numel() else [],
        )
