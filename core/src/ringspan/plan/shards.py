"""Rows to the ranks that hold them, and back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ringspan.contracts.errors import InvalidArgument
from ringspan.plan.agreement import agree
from ringspan.plan.collectives import as_bytes, check_carried, from_all, to_each
from ringspan.plan.groups import process_group
from ringspan.plan.stated import stated

if TYPE_CHECKING:
    import torch.distributed as dist

    from ringspan.plan.layout import Layout

__all__ = [
    "agree_on_rows",
    "carrier",
    "check_tokens",
    "gathered",
    "own_rows",
    "permuted",
    "sharded",
]


def check_tokens(x: Tensor, tokens: int | None, dim: int) -> None:
    """Raises `InvalidArgument` unless `x` is a tensor with that many tokens along `dim`.

    None stands for any number.
    """
    if not isinstance(x, torch.Tensor):
        raise InvalidArgument("x", expected="a torch.Tensor", got=type(x).__name__)
    if type(dim) is not int or not -x.dim() <= dim < x.dim():
        raise InvalidArgument(
            "dim", expected=f"a dimension of a tensor of shape {list(x.shape)}", got=repr(dim)
        )
    if tokens is not None and x.shape[dim] != tokens:
        raise InvalidArgument(
            "x", expected=f"{tokens} tokens along dimension {dim}", got=f"shape {list(x.shape)}"
        )


def carrier(x: Tensor, layout: Layout, group: Any) -> dist.ProcessGroup | None:
    """The process group that carries the layout's rows of `x`; one shard needs none."""
    if layout.world_size == 1:
        return None
    process = process_group(group)
    check_carried("x", x, process)
    return process


def own_rows(x: Tensor, layout: Layout, rank: int, dim: int) -> Tensor:
    """The rows of a full tensor that `rank` holds; the gradient of all others is zero."""
    check_tokens(x, layout.N, dim)
    return x.index_select(dim, layout.positions(rank).to(x.device))


def permuted(x: Tensor, there: Tensor, back: Tensor, dim: int) -> Tensor:
    """The rows `there` of `x`; `back` is the inverse permutation, by which gradients return."""
    result: Tensor = _Permuted.apply(x, there, back, dim)  # type: ignore[no-untyped-call]
    return result


class _Permuted(torch.autograd.Function):
    # The derivative of index_select would add into zeros, row by row.
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, there: Tensor, back: Tensor, dim: int) -> Tensor:
        return x.index_select(dim, there)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, there, back, ctx.dim = inputs
        ctx.save_for_backward(there, back)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        there, back = ctx.saved_tensors
        return permuted(grad, back, there, ctx.dim), None, None, None


def sharded(x: Tensor, layout: Layout, group: Any, dim: int) -> Tensor:
    """This rank's rows of a full tensor, whose gradient is gathered from all ranks."""
    check_tokens(x, layout.N, dim)
    rank, process = layout.own_rank(group), carrier(x, layout, group)
    return stated(
        x,
        lambda x: own_rows(x, layout, rank, dim),
        lambda grad: _all_rows(grad, layout, process, dim),
    )


def gathered(x: Tensor, layout: Layout, group: Any, dim: int, *, summed: bool) -> Tensor:
    """The full tensor in order of position; its gradient is this rank's rows of the upstream one.

    With `summed`, of the sum of all ranks' upstream gradients.
    """
    rank = layout.own_rank(group)
    check_tokens(x, layout.sizes[rank], dim)
    process = carrier(x, layout, group)

    def back(grad: Tensor) -> Tensor:
        if summed and process is not None:
            return _summed_rows(grad, layout, process, dim)
        return own_rows(grad, layout, rank, dim)

    return stated(x, lambda x: _all_rows(x, layout, process, dim), back)


def _all_rows(x: Tensor, layout: Layout, group: dist.ProcessGroup | None, dim: int) -> Tensor:
    rows = x.movedim(dim, 0).contiguous()
    shards = [rows] if group is None else _all_shards(rows, layout, group)
    if layout.contiguous:
        whole = torch.cat(shards)
    else:
        whole = rows.new_empty(layout.N, *rows.shape[1:])
        for rank, shard in enumerate(shards):
            _place(shard, layout.positions(rank), whole)
    return whole.movedim(0, dim).contiguous()


def _all_shards(rows: Tensor, layout: Layout, group: dist.ProcessGroup) -> list[Tensor]:
    # An all-gather wants equal shapes, so shards travel padded.
    padded = rows.new_zeros(max(layout.sizes), *rows.shape[1:])
    padded[: rows.shape[0]] = rows
    received = from_all(padded, group)
    return [shard[:size] for shard, size in zip(received, layout.sizes, strict=True)]


def _place(shard: Tensor, positions: Tensor, whole: Tensor) -> None:
    """Writes rows at their positions, as bytes: not every dtype can be indexed."""
    if shard.numel():
        there = as_bytes(whole).view(whole.shape[0], -1)
        there.index_copy_(0, positions.to(whole.device), as_bytes(shard).view(shard.shape[0], -1))


def _summed_rows(x: Tensor, layout: Layout, group: dist.ProcessGroup, dim: int) -> Tensor:
    """Added in order of rank, in float32 where x is 16-bit."""
    rows = x.movedim(dim, 0)
    if not layout.contiguous:
        rows = rows.index_select(0, torch.from_numpy(layout.order.copy()).to(x.device))
    return to_each(rows, layout.sizes, group).sum(0).movedim(0, dim).contiguous()


def agree_on_rows(
    what: str,
    x: Tensor,
    layout: Layout | None,
    group: dist.ProcessGroup | None,
    dim: int,
    gradient: str,
) -> None:
    """Ranks that would send each other something else learn so before they do.

    Raises:
        RanksDisagree: naming the ranks and the first field that differs.
        RingTimeout: naming the rank that did not come within the group's timeout.
    """
    if group is None:
        return
    check_carried("x", x, group)
    dim %= x.dim()
    sends_gradients = gradient != "own" and torch.is_grad_enabled() and x.requires_grad
    facts = {
        "call": what,
        "layout": repr(layout),
        "gradient": gradient,
        "dim": str(dim),
        "shape": str([size if axis != dim else -1 for axis, size in enumerate(x.shape)]),
        "dtype": str(x.dtype),
        "requires_grad": str(sends_gradients),
    }
    agree(group, facts, x.device)
