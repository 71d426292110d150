"""Where the rows of a call stand, for rotary embedding.

One operator, because orderings live on the host, where `torch.compile` cannot follow; as in the
engine, the layout crosses its border as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ringspan.engine.call import Call
from ringspan.plan.restart import restarted

if TYPE_CHECKING:
    from jaxtyping import Int

__all__ = ["row_positions"]


def row_positions(
    call: Call,
    N: int,
    rank: int,
    *,
    rows: int,
    lengths: Int[Tensor, " documents"] | None,
    device: torch.device,
) -> Int[Tensor, " rows"]:
    """The position of each row that `rank` holds, counted from the start of its document.

    With virtual ranks one process holds the rows of all of them, one after the other.

    Args:
        call: with what the tokens and the layout are.
        N: number of tokens over all ranks.
        rank: whose rows.
        rows: how many they are.
        lengths: of the documents, on the host; None: a single sequence.
        device: of the result.
    """
    if call.layout is None and lengths is None:
        return torch.arange(rows, device=device)
    positions: Tensor = _positions(lengths, call.text, N, rank, rows)
    return positions.to(device)


@torch.library.custom_op("ringspan::positions", mutates_args=())
def _positions(lengths: Tensor | None, call: str, N: int, rank: int, rows: int) -> Tensor:
    layout = Call.from_text(call, N).layout_for(N)
    held = torch.from_numpy(layout.order.copy()) if rows == N else layout.positions(rank)
    # Documents that do not fit the sequence are for attention to refuse.
    if lengths is None or not len(lengths):
        return held
    return restarted(held, lengths)


@_positions.register_fake
def _(lengths: Tensor | None, call: str, N: int, rank: int, rows: int) -> Tensor:
    return torch.empty(rows, dtype=torch.int64)
