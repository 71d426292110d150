"""The collectives that tensors of any dtype take, with errors of our own tree."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ringspan.contracts.errors import InvalidArgument, RingError

if TYPE_CHECKING:
    import torch.distributed as dist

__all__ = ["as_bytes", "check_carried", "from_all", "to_each"]


def check_carried(name: str, x: Tensor, group: dist.ProcessGroup) -> None:
    """Raises `InvalidArgument` unless the group can carry tensors on x's device."""
    import torch.distributed as dist

    backends = dist.get_backend_config(group)
    if f"{x.device.type}:" not in backends:
        raise InvalidArgument(
            f"{name}.device",
            expected=f"a device that the group carries ({backends})",
            got=str(x.device),
        )


def as_bytes(x: Tensor) -> Tensor:
    """A contiguous tensor's memory: no process group carries every dtype, but all carry bytes."""
    return x.reshape(-1).view(torch.uint8)


def from_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """`[P, *x.shape]`: the tensors of all ranks, which have one shape and dtype.

    Raises:
        RingError: a rank did not take part.
    """
    import torch.distributed as dist

    received = x.new_empty(group.size(), *x.shape)
    if received.numel():
        with _together("an all-gather", group):
            parts = [as_bytes(part) for part in received]
            dist.all_gather(parts, as_bytes(x.contiguous()), group=group)
    return received


def to_each(rows: Tensor, sizes: Sequence[int], group: dist.ProcessGroup) -> Tensor:
    """`[P, sizes[rank], ...]`: what each rank had for this one.

    Args:
        rows: for each rank in turn, `sizes[rank]` rows.
        sizes: the same on every rank.
        group: of as many ranks.

    Raises:
        RingError: a rank did not take part.
    """
    import torch.distributed as dist

    own, world_size = sizes[group.rank()], group.size()
    received = rows.new_empty(world_size, own, *rows.shape[1:])
    if rows.numel():
        width = rows.numel() // rows.shape[0] * rows.element_size()
        with _together("an all-to-all", group):
            dist.all_to_all_single(
                as_bytes(received),
                as_bytes(rows.contiguous()),
                [own * width] * world_size,
                [size * width for size in sizes],
                group=group,
            )
    return received


@contextmanager
def _together(what: str, group: dist.ProcessGroup) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        failure = RingError(
            f"rank {group.rank()}",
            expected=f"all {group.size()} ranks of the group in {what}",
            got=f"{type(error).__name__}: {error}",
            remedy="Call on every rank of the group, in the same order",
        )
        failure.rank = group.rank()
        raise failure from error
