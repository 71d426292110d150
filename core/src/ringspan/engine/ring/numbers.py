"""A number from each rank, over the ring's own exchange, so that a dead rank is named here too."""

from __future__ import annotations

import torch

from ringspan.contracts.communicator import Exchange, Message

__all__ = ["from_each"]

_TAG = 2**30 - 1
"""Above the tags of rows and gradients; a rank's next number comes after its last."""


def from_each(exchange: Exchange, number: int, device: torch.device) -> list[int]:
    """What each rank passed, by rank.

    Raises:
        PeerLost, RingTimeout: a rank did not come; the step is 0.
    """
    numbers = torch.full((exchange.world_size,), number, dtype=torch.int64, device=device)
    mine = numbers[exchange.rank : exchange.rank + 1]
    peers = [peer for peer in range(exchange.world_size) if peer != exchange.rank]
    exchange.post(
        [Message(peer, mine, _TAG) for peer in peers],
        [Message(peer, numbers[peer : peer + 1], _TAG) for peer in peers],
    ).wait()
    result: list[int] = numbers.tolist()
    return result
