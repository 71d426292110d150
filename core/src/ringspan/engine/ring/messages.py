"""Rows on their way between ranks: key/value rows out, their gradients back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ringspan.contracts.communicator import Exchange, Message, Pending
from ringspan.contracts.errors import MessageCorrupted
from ringspan.engine.ring.buffers import Buffers
from ringspan.engine.ring.checksum import CHECKSUM_BYTES, checksum
from ringspan.engine.ring.wire import Wire
from ringspan.plan.steps import Parcel, Plan, Step

__all__ = ["Arrival", "Channel", "Envelope", "KeyValue", "Ring"]

_TAGS = 2**30 - 1
_ALIGNED = 64
_KINDS = 4
"""Rows of a forward pass, rows of a backward pass, gradients: each with tags of its own."""


class KeyValue(NamedTuple):
    """Key and value rows `[B, N, H, D]`, `[B, N, H, Dv]`, or their gradients."""

    key: Tensor
    value: Tensor


@dataclass(frozen=True, slots=True)
class Channel:
    """An open exchange, and what tells this pass from every other one."""

    exchange: Exchange
    buffers: Buffers
    wire: Wire
    facts: int
    """Stands for what the ranks agreed on."""
    call: int
    """Number of the forward pass on this exchange, also in its backward pass."""
    backward: bool = False

    def tag(self, plan: Plan, step: Step, *, grads: bool) -> int:
        """Tells calls, passes, steps and directions apart, so that no rank takes other rows."""
        per_call = _KINDS * plan.world_size * plan.kv_heads
        slot = (self.facts + self.call) % max(1, _TAGS // per_call)
        number = step.index * plan.kv_heads + step.part
        return slot * per_call + _KINDS * number + self.backward + grads


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message: keys and values as `[B, rows, 1, D]`, in one run of memory."""

    message: Tensor
    """All bytes that travel."""
    content: Tensor
    """Of these, the rows."""
    rows: KeyValue

    @property
    def checksum(self) -> Tensor:
        """What stands before the content in `debug` mode."""
        return self.message[:CHECKSUM_BYTES].view(torch.int64)


@dataclass(frozen=True, slots=True)
class Arrival:
    """Rows that are being sent and received in one step."""

    received: Envelope
    pending: Pending
    rank: int
    peer: int
    step: int
    checked: bool

    def wait(self) -> KeyValue:
        """The received rows, once they are here; they count one head each.

        Raises:
            PeerLost, RingTimeout: they do not come.
            MessageCorrupted: they are not those that were sent (`debug` only).
        """
        self.pending.wait()
        content = self.received.content
        if self.checked and content.numel():
            said, found = int(self.received.checksum), int(checksum(content))
            if said != found:
                raise MessageCorrupted.between(
                    self.rank,
                    self.peer,
                    step=self.step,
                    direction="receive",
                    got=f"{content.numel()} bytes of checksum {found:#x} instead of {said:#x}",
                    remedy="Suspect the network, or the communicator",
                )
        return self.received.rows


class Ring:
    """One call's messages over a channel.

    Two buffers for arriving rows, one for leaving ones: a step's rows leave before the next
    step's are posted. Gradients on their way take the place of those that arrived before.
    """

    def __init__(self, channel: Channel, plan: Plan, local: KeyValue) -> None:
        self._channel, self._plan, self._local = channel, plan, local
        self._posted = self._summed = 0
        self._before = channel.exchange.bytes_sent, channel.exchange.bytes_received
        self._most_sent = max(len(step.send) for step in plan.steps)
        self._most_received = max(step.receive for step in plan.steps)

    @property
    def call(self) -> int:
        """Number of the forward pass."""
        return self._channel.call

    @property
    def traffic(self) -> tuple[int, int]:
        """Bytes sent and received so far."""
        exchange, (sent, received) = self._channel.exchange, self._before
        return exchange.bytes_sent - sent, exchange.bytes_received - received

    def post_rows(self, step: Step) -> Arrival:
        """Sends the rows that `step.target` needs; receives those that this rank needs."""
        key, value = self._local
        out = self._envelope("sent rows", len(step.send), self._most_sent, key.dtype)
        at = _index(step.send, key.device)
        out.rows.key.squeeze(2).copy_(key[at])
        out.rows.value.squeeze(2).copy_(value[at])
        self._posted += 1
        slot = f"received rows {self._posted % 2}"
        received = self._envelope(slot, step.receive, self._most_received, key.dtype)
        return self._post(step, out, step.target, received, step.source, grads=False)

    def empty_grads(self, step: Step, dtype: torch.dtype) -> Envelope:
        """Zeros for the gradients of the rows received in `step`."""
        self._summed += 1
        slot = f"gradients {self._summed % 2}" if self._travels(dtype) else "gradients"
        envelope = self._envelope(slot, step.receive, self._most_received, dtype)
        envelope.content.zero_()
        return envelope

    def post_grads(self, step: Step, sums: Envelope) -> Arrival:
        """Returns the gradients of received rows to their owner; receives those of sent rows."""
        out, dtype = sums, sums.rows.key.dtype
        if not self._travels(dtype):
            dtype = self._local.key.dtype
            out = self._envelope("sent gradients", step.receive, self._most_received, dtype)
            out.rows.key.copy_(sums.rows.key)
            out.rows.value.copy_(sums.rows.value)
        back = self._envelope("returned gradients", len(step.send), self._most_sent, dtype)
        return self._post(step, out, step.source, back, step.target, grads=True)

    def add_grads(self, step: Step, arrival: Arrival, total: KeyValue) -> None:
        """Adds returned gradients to this rank's own, in place."""
        arrived = arrival.wait()
        at = _index(step.send, total.key.device)
        for mine, theirs in zip(total, arrived, strict=True):
            # Rows of a parcel are distinct, so reading and writing them loses nothing.
            mine[at] += theirs.squeeze(2)

    def _travels(self, dtype: torch.dtype) -> bool:
        """Whether gradients travel in the dtype that they are summed in."""
        return self._channel.wire.wide_gradients or dtype == self._local.key.dtype

    def _envelope(self, slot: str, rows: int, most: int, dtype: torch.dtype) -> Envelope:
        batch = self._local.key.shape[0]
        head_dim, value_head_dim = (x.shape[-1] for x in self._local)
        row = batch * (head_dim + value_head_dim) * dtype.itemsize
        front = CHECKSUM_BYTES if self._channel.wire.debug and rows else 0
        # With or without a checksum, rows lie where kernels like them best.
        skipped = _ALIGNED - front if front else 0
        block = self._channel.buffers.take(
            slot, skipped + front + rows * row, _ALIGNED + most * row
        )
        message = block[skipped:]
        content = message[front:]
        elements, border = content.view(dtype), batch * rows * head_dim
        key = elements[:border].view(batch, rows, 1, head_dim)
        value = elements[border:].view(batch, rows, 1, value_head_dim)
        return Envelope(message, content, KeyValue(key, value))

    def _post(
        self,
        step: Step,
        sent: Envelope,
        target: int,
        received: Envelope,
        source: int,
        *,
        grads: bool,
    ) -> Arrival:
        channel = self._channel
        tag = channel.tag(self._plan, step, grads=grads)
        if channel.wire.debug and sent.content.numel():
            sent.checksum.copy_(checksum(sent.content))
        pending = channel.exchange.post(
            *(
                [Message(peer, envelope.message, tag, step.index)]
                if envelope.content.numel()
                else []
                for peer, envelope in ((target, sent), (source, received))
            )
        )
        return Arrival(
            received, pending, self._plan.rank, source, step.index, checked=channel.wire.debug
        )


def _index(parcel: Parcel, device: torch.device) -> tuple[slice, Tensor, Tensor]:
    return (slice(None), parcel.rows.on(device), parcel.heads.on(device))
