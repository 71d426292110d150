"""Means over the real tokens of all ranks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ringspan.contracts.errors import InvalidArgument
from ringspan.parallel.checks import check_convention, ranks_of
from ringspan.plan.collectives import check_carried, from_all
from ringspan.plan.stated import stated

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

__all__ = ["token_mean"]


def token_mean(
    losses: Float[Tensor, "*rows"],
    real: Bool[Tensor, "*rows"] | None = None,
    group: Any = None,
    *,
    gradients: Literal["mean", "sum"] = "mean",
    count: int | None = None,
) -> Float[Tensor, ""]:
    """The mean loss of all real tokens on all ranks, the same number on every rank.

    With `S_p` the sum of the losses at real tokens of rank `p`, `n_p` their number and `P` ranks,

        L = sum_p S_p / sum_p n_p

    The mean of the ranks' own means, `sum_p (S_p / n_p) / P`, is another number wherever ranks
    hold different numbers of real tokens, as with packed or padded sequences and uneven shards.

    `backward` on every rank gives each its own part of the gradient; what a parameter gets is the
    gradient of `L` once the parts of all ranks are reduced. `gradients` says how they will be:

        "mean"   averaged, as DDP and FSDP do: each rank's part is P dS_p / sum_q n_q
        "sum"    added: each rank's part is dS_p / sum_q n_q

    Averaged over more ranks than the group has, such as over a whole mesh of data x ring with
    `group=mesh["ring"]`, it is the gradient of the mean of the rings' means. Pass the ranks that
    the gradients are averaged over, and every real token counts alike.

    Args:
        losses: one for each of this rank's rows, of any shape, as
            `cross_entropy(..., reduction="none")` gives them.
        real: True where a row counts, of losses' shape, such as `labels != -100`; None: all do.
            Losses elsewhere may be anything, NaN too.
        group: a ProcessGroup or one-dimensional DeviceMesh; None: the default group, or without
            torch.distributed, this process alone.
        gradients: see above.
        count: divide by this instead of by the real tokens of this call. When gradients
            accumulate over several calls: the real tokens of all of them, on all ranks.

    Returns:
        A scalar, float32 (float64 for float64). Without any real token it is 0, with zero
        gradients.

    Raises:
        InvalidArgument: an argument is wrong or does not fit the others; names it.
        RingError: a rank did not take part.

    Example:
        >>> import torch, ringspan as rs
        >>> losses, real = torch.tensor([1.0, 2.0, 9.0]), torch.tensor([True, True, False])
        >>> rs.parallel.token_mean(losses, real)
        tensor(1.5000)
    """
    check_convention("gradients", gradients, ("mean", "sum"))
    _check(losses, real, count)
    process = ranks_of(group)
    if process is not None:
        check_carried("losses", losses, process)
    own = losses if real is None else losses.where(real, 0)
    # Counts and sums travel in one message, in which float32 would count no further than 2**24.
    summed = own.sum(dtype=torch.float64)
    number = torch.tensor(losses.numel()) if real is None else real.sum()
    both = torch.stack([summed.detach(), number.to(summed)])
    total, real_tokens = both if process is None else from_all(both, process).sum(0)
    divisor = real_tokens.clamp(min=1) if count is None else real_tokens.new_tensor(max(count, 1))
    ranks = 1 if process is None or gradients == "sum" else process.size()
    dtype = torch.promote_types(losses.dtype, torch.float32)
    return stated(
        summed,
        lambda _: (total / divisor).to(dtype),
        lambda grad: grad.to(summed) * ranks / divisor,
    )


def _check(losses: object, real: object, count: object) -> None:
    if not isinstance(losses, Tensor) or not losses.dtype.is_floating_point:
        got = str(losses.dtype) if isinstance(losses, Tensor) else repr(losses)
        raise InvalidArgument("losses", expected="a floating-point tensor", got=got)
    masks = isinstance(real, Tensor) and real.dtype == torch.bool
    if real is not None and (not masks or real.shape != losses.shape):  # type: ignore[attr-defined]
        raise InvalidArgument(
            "real",
            expected=f"a bool tensor {list(losses.shape)}, as losses",
            got=f"{real.dtype} {list(real.shape)}" if isinstance(real, Tensor) else repr(real),
        )
    if count is not None and (type(count) is not int or count < 0):
        raise InvalidArgument("count", expected="an integer >= 0", got=repr(count))
