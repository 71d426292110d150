"""Where this rank's rows stand in the sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ringspan.parallel.checks import check_documents, check_layout
from ringspan.plan.restart import restarted

if TYPE_CHECKING:
    import torch
    from jaxtyping import Int
    from torch import Tensor

    from ringspan.contracts.documents import Documents
    from ringspan.plan.layout import Layout

__all__ = ["position_ids"]


def position_ids(
    layout: Layout,
    group: Any = None,
    *,
    documents: Documents | None = None,
    device: torch.device | str | None = None,
) -> Int[Tensor, " rows"]:
    """The position of each of this rank's rows: for learned and rotary position embeddings.

    `ringspan.nn` finds the positions of its rotary embedding itself.

    Args:
        layout: which rows each rank holds, in which order.
        group: a ProcessGroup or one-dimensional DeviceMesh; None: the default group (none is
            needed for one shard).
        documents: count each document's rows from 0.
        device: of the result; None: the CPU.

    Returns:
        int64 `[rows]`.

    Raises:
        InvalidArgument: an argument is wrong or does not fit the others; names it.

    Example:
        >>> import ringspan as rs
        >>> documents = rs.Documents.from_lengths([2, 3])
        >>> rs.parallel.position_ids(rs.Layout(5), documents=documents).tolist()
        [0, 1, 0, 1, 2]
    """
    check_layout(layout)
    rank = layout.own_rank(group)
    positions: Tensor = layout.positions(rank)
    if documents is not None:
        check_documents(documents, layout.N)
        positions = restarted(positions, documents.tensor)
    return positions.to(device)
