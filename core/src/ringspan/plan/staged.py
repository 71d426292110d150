"""What virtual ranks move between host memory and a device, and hold there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringspan.contracts.work import Indexed

if TYPE_CHECKING:
    from ringspan.contracts.work import Tiles
    from ringspan.plan.steps import Plan, Step

__all__ = ["Staged", "index_bytes", "staged"]


@dataclass(frozen=True, slots=True)
class Staged:
    """Bytes of one call on virtual ranks whose tensors all lie in host memory."""

    forward_up: int
    """To the device: each shard's queries, keys and values, and what it needs of others' rows."""
    forward_down: int
    """From the device: outputs and log-sum-exps."""
    backward_up: int
    """Each shard's keys and values, and of every shard that sees any of them the queries, outputs
    and upstream gradients."""
    backward_down: int
    """Gradients: those of queries once for each shard whose keys they see."""
    resident: int
    """Estimated peak on the device, at any number of shards of these lengths."""


def staged(
    plans: Sequence[Plan],
    *,
    batch: int,
    head_dim: int,
    value_head_dim: int,
    itemsize: int,
    backward: bool,
) -> Staged:
    """Of all ranks' plans, for tensors of these sizes."""
    both, wide = head_dim + value_head_dim, max(itemsize, 4)
    # Bytes of all heads of one token: a query and its gradient, what goes with it, a key and value.
    heads, kv_heads = plans[0].heads, plans[0].kv_heads
    query, out, lse = heads * head_dim, heads * value_head_dim, heads * wide
    asking = (query + 2 * out) * itemsize + lse
    queries = [plan.rows for plan in plans if plan.rows]
    keys = [plan.key_rows for plan in plans if plan.rows]
    visits = list(_visits(plans))
    visited = sum(plans[rank].key_rows for rank in {key_rank for key_rank, _ in visits})
    asked = sum(plans[rank].rows for _, rank in visits)
    row = both * itemsize
    arriving = sum(plan.rows_received for plan in plans)
    return Staged(
        forward_up=batch
        * (sum(queries) * query * itemsize + (sum(keys) * kv_heads + arriving) * row),
        forward_down=batch * sum(queries) * (out * itemsize + lse),
        backward_up=backward * batch * (visited * kv_heads * row + asked * asking),
        backward_down=backward * batch * (visited * kv_heads * row + asked * query * wide),
        resident=batch * _resident(plans, head_dim, value_head_dim, itemsize, backward),
    )


def _visits(plans: Sequence[Plan]) -> Iterator[tuple[int, int]]:
    """Each rank of keys, with each rank whose queries see any of them."""
    for plan in plans:
        yield from {(step.source, plan.rank) for step in plan.steps if step.work}


def _resident(
    plans: Sequence[Plan], head_dim: int, value_head_dim: int, itemsize: int, backward: bool
) -> int:
    """Two loads at a time if there are more, the sums, and the largest piece of a kernel."""
    both, wide = head_dim + value_head_dim, max(itemsize, 4)
    queries = max(plan.rows * plan.heads for plan in plans)
    keys = max(plan.key_rows * plan.kv_heads for plan in plans)
    steps = [step for plan in plans for step in plan.steps]
    arriving = max(step.receive for step in steps)
    indices = max(index_bytes(step) for step in steps)
    pieces = [_piece(tiles) for step in steps for tiles in step.tiles] or [(0, 0, False)]
    query, key = max(each[0] for each in pieces), max(each[1] for each in pieces)
    gathered = any(each[2] for each in pieces)
    sums = queries * (value_head_dim + 1) * wide
    more = len(plans) > 1
    loads = (1 + more) * queries * head_dim + (keys + more * max(keys, arriving)) * both
    piece = query * (value_head_dim * itemsize + wide)
    piece += gathered * (query * head_dim + key * both) * itemsize
    forward = loads * itemsize + sums + piece + indices
    if not backward:
        return forward
    asking = (both + value_head_dim) * itemsize + wide
    some = more * arriving * both * (itemsize + wide)
    grads = (queries * head_dim + keys * both) * wide
    piece = (query * head_dim + key * both) * itemsize
    piece += gathered * (query * asking + key * both * itemsize)
    loads = (1 + more) * (queries * asking + keys * both * itemsize)
    return max(forward, loads + some + grads + piece + indices)


def _piece(tiles: Tiles) -> tuple[int, int, bool]:
    """Query and key rows, times their heads, and whether a launch gathers them."""
    gathered = tiles.keys_overlap or any(isinstance(x, Indexed) for x in (tiles.query, tiles.key))
    query = tiles.count * tiles.query_length * len(tiles.query_heads) * tiles.group
    return query, tiles.count * tiles.key_length * len(tiles.key_heads), gathered


def index_bytes(step: Step) -> int:
    """Bytes of the indices, bounds and bitmaps of a step's work, once on the device."""
    total = 0
    for tiles in step.tiles:
        for part in (tiles.query, tiles.key, tiles.low, tiles.high):
            total += part.rows.nbytes if isinstance(part, Indexed) else 0
        total += 0 if tiles.seen is None else tiles.seen.table.nbytes
    return total
