"""Where the rows of a call stand, for rotary embedding.

One operator, because orderings and documents live on the host, where `torch.compile` cannot
follow; as in the engine, they cross its border as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ringspan.contracts.documents import Documents
from ringspan.engine.call import Call
from ringspan.patterns import Dense

if TYPE_CHECKING:
    from jaxtyping import Int

    from ringspan.contracts.tokens import Tokens
    from ringspan.plan.layout import Layout

__all__ = ["row_positions"]


def row_positions(
    rows: int,
    *,
    layout: Layout | None,
    rank: int,
    tokens: Tokens | None,
    documents: Documents | None,
    device: torch.device,
) -> Int[Tensor, " rows"]:
    """The position of each of this rank's rows, counted from the start of its document."""
    if layout is None and documents is None:
        return torch.arange(rows, device=device)
    call = Call(Dense(), tokens=tokens, layout=layout)
    handle = "" if documents is None else documents.handle
    N = rows if layout is None else layout.N
    positions: Tensor = _positions(call.text, N, rank, rows, handle)
    return positions.to(device)


@torch.library.custom_op("ringspan::positions", mutates_args=())
def _positions(call: str, N: int, rank: int, rows: int, documents: str) -> Tensor:
    """int64 `[rows]`, on the CPU. `call` is a `Call.text` with what the layout is."""
    held = Call.from_text(call, N).layout_for(N).positions(rank)
    if not documents:
        return held
    starts, positions = Documents.find(documents).starts, held.numpy()
    return held - torch.from_numpy(starts[np.searchsorted(starts, positions, side="right") - 1])


@_positions.register_fake
def _(call: str, N: int, rank: int, rows: int, documents: str) -> Tensor:
    return torch.empty(rows, dtype=torch.int64)
