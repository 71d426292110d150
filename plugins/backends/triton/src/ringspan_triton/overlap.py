"""The backward pass of a branch, whose tiles may have key rows in common."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from ringspan.contracts import Grads
from ringspan.contracts.work import Affine

from ringspan_triton.geometry import of_branch
from ringspan_triton.launch import attend_backward

if TYPE_CHECKING:
    from jaxtyping import Float
    from ringspan.contracts import Branch
    from ringspan.contracts.selection import Selection
    from torch import Tensor

__all__ = ["backward_branch"]


def backward_branch(
    grad_out: Float[Tensor, "B N H Dv"],
    query: Float[Tensor, "B N H D"],
    key: Float[Tensor, "B M Hkv D"],
    value: Float[Tensor, "B M Hkv Dv"],
    lse: Float[Tensor, "B H N"],
    delta: Float[Tensor, "B H N"],
    branch: Branch,
    *,
    grads: Grads,
    first_query: bool,
    first_key: bool,
) -> None:
    """Writes or adds gradients where their rows lie.

    Where tiles have key rows in common their gradients are by tile at first, and then added.
    """
    geometry, keys = of_branch(branch, query), branch.key
    tensors = (grad_out, query, key, value, lse, delta, geometry)
    if not keys.overlap:
        attend_backward(*tensors, grads=grads, first_query=first_query, first_key=first_key)
        return
    shape = (len(query) * keys.tiles, keys.length, len(keys.heads))
    by_tile = Grads(
        grads.query,
        *(lse.new_empty(*shape, x.shape[-1]) for x in (key, value)),
    )
    attend_backward(
        *tensors, grads=by_tile, first_query=first_query, first_key=True, key_in_place=False
    )
    for total, piece in ((grads.key, by_tile.key), (grads.value, by_tile.value)):
        if first_key:
            _clear(keys, total)
        keys.add(total, keys.split(piece, len(query)))


def _clear(rows: Selection, x: Float[Tensor, "B M Hkv D"]) -> None:
    """Zeros in the rows of all tiles."""
    if isinstance(rows.rows, Affine) and rows.rows.tile_step == 0:
        rows = replace(rows, tiles=1)
    rows.write(x, x.new_zeros(1))
