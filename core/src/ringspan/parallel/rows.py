"""Full tensors to each rank's rows, and back, with stated gradients.

Ranks train one model on one sequence by each computing the part of the loss that its rows give.
In `backward`, attention on a ring hands every rank the gradient of the *sum* of what all ranks call
`backward` on. For tensors that every rank holds in full there are then two useful gradients, and
which is right depends on what happens to it afterwards. So it is said, never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch

from ringspan.parallel.checks import check_convention, check_layout, ranks_of
from ringspan.plan.collectives import from_all
from ringspan.plan.layout import Layout
from ringspan.plan.shards import (
    agree_on_rows,
    carrier,
    check_tokens,
    gathered,
    own_rows,
    sharded,
)

if TYPE_CHECKING:
    import torch.distributed as dist
    from torch import Tensor

__all__ = ["gather", "shard"]

Rows = TypeVar("Rows", bound="Tensor | tuple[Any, ...] | list[Any] | dict[str, Any]")


def shard(
    x: Rows,
    layout: Layout | None = None,
    group: Any = None,
    *,
    dim: int = 1,
    gradient: Literal["own", "gathered"] = "own",
) -> Rows:
    """This rank's rows of a tensor that every rank holds in full.

    With `R_p` the rows of rank `p`, `shard(x)` is `R_p x`. With `g_p` the upstream gradient on
    rank `p`, the gradient of `x` there is

        "own"        R_p^T g_p              zero outside this rank's rows
        "gathered"   sum_q R_q^T g_q        all rows, the same on every rank

    "own" is the derivative of this rank's copy. Parameters behind `x` get a part of their gradient
    on each rank, to be reduced over the ranks like that of every replicated parameter, which DDP
    and FSDP do. Nothing is sent. "gathered" is for `x` whose gradient is used as it is, on every
    rank: behind it no reduction follows.

    Args:
        x: holds all tokens along `dim`, in order of position, in any dtype; or a tuple, list or
            dict of such tensors, such as ids and labels, in which None stays None.
        layout: which rows each rank holds; None: contiguous and even, which is also what
            attention takes rows for when it gets a group and no layout.
        group: a ProcessGroup or one-dimensional DeviceMesh; None: the default group, or without
            torch.distributed, this process alone.
        dim: the dimension of tokens; 1 as in `[B, N, ...]`.
        gradient: see above.

    Returns:
        What `x` is, with this rank's rows in the order of `layout.positions(rank)`.

    Raises:
        InvalidArgument: an argument is wrong or does not fit the others; names it.
        RanksDisagree: for "gathered", ranks call with different arguments.

    Do not shard `documents` and `key_padding`: attention takes them whole.

    Example:
        >>> import torch, ringspan as rs
        >>> ids = torch.randint(256, (1, 4096))
        >>> mine = rs.parallel.shard(ids)  # all of them, in a process alone
    """
    check_convention("gradient", gradient, ("own", "gathered"))
    return _each(x, lambda each: _shard(each, layout, group, dim, gradient))


def gather(
    x: Rows,
    layout: Layout | None = None,
    group: Any = None,
    *,
    dim: int = 1,
    gradient: Literal["own", "summed"] = "own",
) -> Rows:
    """The full tensor in order of position, on every rank, from every rank's rows.

    With `R_p` the rows of rank `p`, `gather(x)` is `sum_q R_q^T x_q`. With `g_p` the upstream
    gradient on rank `p`, the gradient of its rows is

        "own"      R_p g_p              its rows of its own upstream gradient
        "summed"   R_p sum_q g_q        its rows of all ranks' upstream gradients, added

    "own" is right where every rank computes the *same* loss from the gathered tensor, which then
    counts once. "summed" is right where each rank's loss is a different *part* and the loss is
    their sum.

    Args:
        x: this rank's rows along `dim`, as `shard` gives them, in any dtype; or a tuple, list or
            dict of such tensors, in which None stays None.
        layout: which rows each rank holds; None: contiguous shards, whose lengths the ranks tell
            each other in one small all-gather.
        group: as for `shard`.
        dim: the dimension of tokens.
        gradient: see above. "summed" sends gradients, so `backward` must run on every rank.

    Raises:
        InvalidArgument: an argument is wrong or does not fit the others; names it.
        RanksDisagree: ranks call with different arguments, shapes or dtypes.
        RingError: a rank did not take part.

    Example:
        >>> import torch, ringspan as rs
        >>> x = torch.randn(1, 4096, 64)
        >>> whole = rs.parallel.gather(rs.parallel.shard(x))
    """
    check_convention("gradient", gradient, ("own", "summed"))
    return _each(x, lambda each: _gather(each, layout, group, dim, gradient))


def _each(x: Rows, do: Callable[[Tensor], Tensor]) -> Rows:
    """`do` of a tensor, or of each in a collection."""
    done: Any
    if isinstance(x, dict):
        done = {name: None if each is None else do(each) for name, each in x.items()}
    elif isinstance(x, tuple | list):
        made = list if isinstance(x, list) else tuple
        done = made(None if each is None else do(each) for each in x)
    else:
        done = do(x)
    return cast("Rows", done)


def _shard(x: Tensor, layout: Layout | None, group: Any, dim: int, gradient: str) -> Tensor:
    check_tokens(x, None, dim)
    if layout is None:
        process = ranks_of(group)
        layout = Layout(x.shape[dim], 1 if process is None else process.size())
    check_layout(layout)
    rank = layout.own_rank(group)
    check_tokens(x, layout.N, dim)
    if gradient == "own":
        return own_rows(x, layout, rank, dim)
    agree_on_rows("shard", x, layout, carrier(x, layout, group), dim, gradient)
    return sharded(x, layout, group, dim)


def _gather(x: Tensor, layout: Layout | None, group: Any, dim: int, gradient: str) -> Tensor:
    check_tokens(x, None, dim)
    if layout is None:
        process = ranks_of(group)
    else:
        check_layout(layout)
        check_tokens(x, layout.sizes[layout.own_rank(group)], dim)
        process = carrier(x, layout, group)
    agree_on_rows("gather", x, layout, process, dim, gradient)
    if layout is None:
        layout = _contiguous(x.shape[dim], process, x.device)
    return gathered(x, layout, group, dim, summed=gradient == "summed")


def _contiguous(rows: int, group: dist.ProcessGroup | None, device: torch.device) -> Layout:
    """Shards as long as they are, told by each rank to all."""
    if group is None:
        return Layout(rows)
    sizes = from_all(torch.tensor(rows, device=device), group).tolist()
    return Layout(sum(sizes), group.size(), sizes=tuple(sizes))
