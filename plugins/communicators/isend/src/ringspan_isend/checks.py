"""What may be posted: everything that would otherwise hang, abort the process or swap tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from ringspan.contracts import InvalidArgument, Message

if TYPE_CHECKING:
    from collections.abc import Sequence, Set

    import torch

__all__ = ["Direction", "Ticket", "check_tags", "check_tensor"]

Direction = Literal["send", "receive"]


class Ticket(NamedTuple):
    """What tells one message in flight from all others."""

    direction: Direction
    peer: int
    tag: int

    def __str__(self) -> str:
        preposition = "to" if self.direction == "send" else "from"
        return f"{self.direction} {preposition} rank {self.peer} with tag {self.tag}"


def check_tensor(
    name: str, message: Message, *, rank: int, world_size: int, device: torch.device
) -> None:
    """Refuses a peer that is not another rank of the group, and a tensor that cannot travel."""
    if not 0 <= message.peer < world_size or message.peer == rank:
        raise InvalidArgument(
            f"{name}.peer",
            expected=f"a rank in 0 .. {world_size - 1} other than this rank {rank}",
            got=str(message.peer),
            remedy="Peers are ranks of the group; what stays on a rank needs no message",
        )
    tensor = message.tensor
    if not tensor.is_contiguous():
        raise InvalidArgument(
            f"{name}.tensor",
            expected="a contiguous tensor",
            got=f"shape {list(tensor.shape)} with strides {tensor.stride()}",
            remedy="Gather the rows into a buffer first",
        )
    if tensor.device.type != device.type or device.index not in (None, tensor.device.index):
        raise InvalidArgument(
            f"{name}.tensor",
            expected=f"a tensor on {device}",
            got=f"one on {tensor.device}",
            remedy="Open an exchange for that device",
        )


def check_tags(
    name: str, direction: Direction, messages: Sequence[Message], in_flight: Set[Ticket]
) -> set[Ticket]:
    """The tickets of `messages` that will travel; refuses a tag twice in flight with one peer.

    gloo matches messages of one tag in posting order, so a tag used twice could swap them.
    """
    tickets: set[Ticket] = set()
    for index, message in enumerate(messages):
        if not message.tensor.numel():
            continue
        ticket = Ticket(direction, message.peer, message.tag)
        if ticket in tickets or ticket in in_flight:
            raise InvalidArgument(
                f"{name}[{index}].tag",
                expected=f"a tag not in flight with rank {message.peer}",
                got=str(message.tag),
                remedy="Use another tag, or wait for the earlier message",
            )
        tickets.add(ticket)
    return tickets
