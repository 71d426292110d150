"""Messages as they are handed over, and the refusal of what cannot travel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from ringspan.contracts import InvalidArgument, Message

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    from torch import Tensor

__all__ = ["Parcel", "Ticket", "packed"]


@dataclass(frozen=True, slots=True)
class Ticket:
    """What tells one message in flight from all others."""

    direction: Literal["send", "receive"]
    peer: int
    tag: int
    step: int = field(default=0, compare=False)

    def __str__(self) -> str:
        preposition = "to" if self.direction == "send" else "from"
        return f"{self.direction} {preposition} rank {self.peer} with tag {self.tag}"


@dataclass(frozen=True, slots=True, eq=False)
class Parcel:
    """A message: its ticket and its bytes."""

    ticket: Ticket
    content: Tensor
    """The tensor's own memory as `uint8`, so that NCCL need not know the dtype."""


def packed(
    direction: Literal["send", "receive"],
    messages: Sequence[Message],
    *,
    rank: int,
    world_size: int,
    device: torch.device,
    in_flight: Set[Ticket],
) -> list[Parcel]:
    """The parcels of `messages`; empty tensors do not travel and have none.

    Raises:
        InvalidArgument: a peer that is not another rank of the group; a tensor that is not
            contiguous or on another device; a tag twice in flight with one peer.
    """
    parcels: dict[Ticket, Parcel] = {}
    for index, message in enumerate(messages):
        name = f"{direction}s[{index}]"
        _check_peer(name, message.peer, rank, world_size)
        _check_tensor(name, message.tensor, device)
        if not message.tensor.numel():
            continue
        ticket = Ticket(direction, message.peer, message.tag, message.step)
        if ticket in parcels or ticket in in_flight:
            raise InvalidArgument(
                f"{name}.tag",
                expected=f"a tag not in flight with rank {message.peer}",
                got=str(message.tag),
                remedy="Use another tag, or wait for the earlier message",
            )
        content = message.tensor.detach().reshape(-1).view(torch.uint8)
        parcels[ticket] = Parcel(ticket, content)
    return list(parcels.values())


def _check_peer(name: str, peer: int, rank: int, world_size: int) -> None:
    if not 0 <= peer < world_size or peer == rank:
        raise InvalidArgument(
            f"{name}.peer",
            expected=f"a rank in 0 .. {world_size - 1} other than this rank {rank}",
            got=str(peer),
            remedy="Peers are ranks of the group; what stays on a rank needs no message",
        )


def _check_tensor(name: str, tensor: Tensor, device: torch.device) -> None:
    if not tensor.is_contiguous():
        raise InvalidArgument(
            f"{name}.tensor",
            expected="a contiguous tensor",
            got=f"shape {list(tensor.shape)} with strides {tensor.stride()}",
            remedy="Gather the rows into a buffer first",
        )
    if tensor.device != device:
        raise InvalidArgument(
            f"{name}.tensor",
            expected=f"a tensor on {device}",
            got=f"one on {tensor.device}",
            remedy="Open an exchange for that device",
        )
