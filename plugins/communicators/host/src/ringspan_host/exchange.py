"""The exchange: copies between host memory and a device, and counts what crosses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from ringspan.contracts import Exchange, InvalidArgument, Message, Pending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["HostExchange"]

HOST = torch.device("cpu")


class HostExchange(Exchange):
    """Both ends of every message are this process's own: a message is a copy.

    What arrives on the device counts as received, what leaves it as sent; where the device is the
    CPU, a copy is both. On CUDA copies run on a stream of their own, behind the work that the
    current stream has been given so far and beside what it is given later.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.rank, self.world_size = 0, 1
        self._stream = _stream(device) if device.type == "cuda" else None

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        """Copies each send into the receive of equal tag.

        Errors:
            InvalidArgument: before anything is copied: tags that are not in pairs, ends of
                different sizes, a tensor that is not contiguous or on another device.
        """
        pairs = _paired(sends, receives)
        for name, messages in (("sends", sends), ("receives", receives)):
            for index, message in enumerate(messages):
                self._check(f"{name}[{index}].tensor", message.tensor)
        copies = [
            (_as_bytes(sent.tensor), _as_bytes(received.tensor))
            for sent, received in pairs
            if sent.tensor.numel()
        ]
        self.bytes_sent += sum(sent.nbytes for sent, _ in copies if self._here(sent))
        self.bytes_received += sum(target.nbytes for _, target in copies if self._here(target))
        if self._stream is None:
            for source, target in copies:
                target.copy_(source)
            return _Done()
        return _Streamed(copies, self._stream)

    def _here(self, tensor: Tensor) -> bool:
        """Whether a tensor is on the device."""
        return tensor.device.type == self.device.type

    def _check(self, name: str, tensor: Tensor) -> None:
        if not tensor.is_contiguous():
            raise InvalidArgument(
                name,
                expected="a contiguous tensor",
                got=f"shape {list(tensor.shape)} with strides {tensor.stride()}",
                remedy="Gather the rows into a buffer first",
            )
        ours = self.device.index in (None, tensor.device.index)
        if tensor.device != HOST and not (self._here(tensor) and ours):
            raise InvalidArgument(
                name,
                expected=f"a tensor in host memory or on {self.device}",
                got=f"one on {tensor.device}",
                remedy="Open an exchange for that device",
            )


class _Done(Pending):
    """Copies that were made before `post` returned."""

    def wait(self) -> None:
        """Nothing is left to wait for."""


class _Streamed(Pending):
    """Copies on a stream. Only page-locked memory is copied without the processor, so others go
    by way of some, which torch keeps for the next copies."""

    def __init__(self, copies: Sequence[tuple[Tensor, Tensor]], stream: torch.cuda.Stream) -> None:
        self._landings: list[tuple[Tensor, Tensor]] = []
        self._locked = False
        self._device = stream.device
        stream.wait_stream(torch.cuda.current_stream(stream.device))
        with torch.cuda.stream(stream):
            for source, target in copies:
                self._start(source, target, stream)
        self._event: torch.cuda.Event | None = stream.record_event()
        # Nobody may reuse this memory before the copies are done, should nobody wait for them.
        for tensor in (tensor for pair in copies for tensor in pair if tensor.is_cuda):
            tensor.record_stream(stream)

    def _start(self, source: Tensor, target: Tensor, stream: torch.cuda.Stream) -> None:
        if not target.is_cuda and not target.is_pinned():
            landing = torch.empty_like(target, pin_memory=True)
            self._landings.append((landing, target))
            target = landing
        if not source.is_cuda and not source.is_pinned():
            source = torch.empty_like(source, pin_memory=True).copy_(source)
        else:
            # The caller's own memory: free to be written to only when it has been read.
            self._locked |= not source.is_cuda
        self._locked |= not target.is_cuda
        target.copy_(source, non_blocking=True)

    def wait(self) -> None:
        """Until host memory is free and filled; on the device, the current stream waits."""
        if self._event is None:
            return
        if self._locked:
            self._event.synchronize()
        torch.cuda.current_stream(self._device).wait_event(self._event)
        for landing, target in self._landings:
            target.copy_(landing)
        self._event = None
        self._landings.clear()


def _stream(device: torch.device) -> torch.cuda.Stream:
    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    return stream


def _paired(sends: Sequence[Message], receives: Sequence[Message]) -> list[tuple[Message, Message]]:
    """Sends and receives of equal tag."""
    by_tag = [_by_tag("sends", sends), _by_tag("receives", receives)]
    if by_tag[0].keys() != by_tag[1].keys():
        alone = sorted(by_tag[0].keys() ^ by_tag[1].keys())
        raise InvalidArgument(
            "sends and receives",
            expected="both ends of every message in one call",
            got=f"one end alone of tags {alone}",
        )
    pairs = [(sent, by_tag[1][tag]) for tag, sent in by_tag[0].items()]
    for sent, received in pairs:
        if sent.tensor.nbytes != received.tensor.nbytes:
            raise InvalidArgument(
                "sends and receives",
                expected="as many bytes at both ends of a message",
                got=f"{sent.tensor.nbytes} sent and {received.tensor.nbytes} received with tag "
                f"{sent.tag}",
            )
    return pairs


def _by_tag(name: str, messages: Sequence[Message]) -> dict[int, Message]:
    found: dict[int, Message] = {}
    for index, message in enumerate(messages):
        if message.tag in found:
            raise InvalidArgument(
                f"{name}[{index}].tag", expected="a tag of its own", got=str(message.tag)
            )
        found[message.tag] = message
    return found


def _as_bytes(tensor: Tensor) -> Tensor:
    """The tensor's own memory as `uint8`: any dtype is copied bit by bit."""
    return tensor.detach().reshape(-1).view(torch.uint8)
