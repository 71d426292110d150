"""What a plan costs one rank: floating-point operations, bytes on the wire, memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ringspan.plan.steps import Plan

__all__ = ["Cost", "cost_of"]


@dataclass(frozen=True, slots=True)
class Cost:
    """What one rank computes and moves, and an estimate of its memory."""

    flops: int
    """Of a forward pass: multiplications and additions of both matrix products, under the mask."""
    bytes_received: int
    """In a forward pass."""
    bytes_sent: int
    backward_bytes_received: int
    """In a backward pass: the same rows again, and the gradients of those that were sent."""
    backward_bytes_sent: int
    memory: int
    """Estimated peak bytes above q, k, v and, with a backward pass, the output's gradient."""


def cost_of(
    plan: Plan,
    *,
    batch: int,
    head_dim: int,
    value_head_dim: int,
    itemsize: int,
    gradient_itemsize: int,
    backward: bool,
) -> Cost:
    """The cost of `plan` for tensors of these sizes; gradients may travel wider than rows."""
    row = batch * (head_dim + value_head_dim)
    received, sent = row * plan.rows_received, row * plan.rows_sent
    return Cost(
        flops=2 * plan.area * row,
        bytes_received=received * itemsize,
        bytes_sent=sent * itemsize,
        backward_bytes_received=backward * (received * itemsize + sent * gradient_itemsize),
        backward_bytes_sent=backward * (sent * itemsize + received * gradient_itemsize),
        memory=batch * _memory(plan, head_dim, value_head_dim, itemsize, backward),
    )


def _memory(plan: Plan, head_dim: int, value_head_dim: int, itemsize: int, backward: bool) -> int:
    both = head_dim + value_head_dim
    wide = max(itemsize, 4)
    query_rows, key_rows = plan.rows * plan.heads, plan.key_rows * plan.kv_heads
    out = query_rows * value_head_dim * (itemsize if plan.one_piece else itemsize + wide)
    lse = query_rows * wide
    travelling = 2 * max((step.receive + len(step.send) for step in plan.steps), default=0) * both
    largest_query, largest_key = _largest_piece(plan)
    piece = largest_query * (value_head_dim * itemsize + wide)
    forward = out + lse + piece + travelling * itemsize
    if not backward:
        return forward
    saved = query_rows * value_head_dim * itemsize + lse
    grads = (query_rows * head_dim + key_rows * both) * wide
    grad_piece = (largest_query * head_dim + largest_key * both) * itemsize
    return max(forward, saved + lse + grads + grad_piece + travelling * (itemsize + wide))


def _largest_piece(plan: Plan) -> tuple[int, int]:
    """Query and key rows, times their heads, of the largest launch."""
    launches = [tiles for step in plan.steps for tiles in step.tiles]
    query = [t.count * t.query_length * len(t.query_heads) * t.group for t in launches]
    key = [t.count * t.key_length * len(t.key_heads) for t in launches]
    return max(query, default=0), max(key, default=0)
