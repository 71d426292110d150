"""Process groups of torch.distributed whose ranks are threads."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ringspan.contracts.errors import InvalidArgument
from ringspan.testing.loopback.wires import Address, Meeting, Wires, copy_bits
from ringspan.testing.loopback.world import seat

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import timedelta

    from torch import Tensor

    from ringspan.testing.loopback.wires import Delivery

__all__ = ["BACKEND", "LoopbackGroup"]

BACKEND = "loopback"
"""As `torch.distributed.get_backend` says."""

_REDUCTIONS: dict[Any, Callable[[Tensor], Tensor]] = {
    dist.ReduceOp.SUM: lambda stacked: stacked.sum(0),
    dist.ReduceOp.AVG: lambda stacked: stacked.mean(0),
    dist.ReduceOp.PRODUCT: lambda stacked: stacked.prod(0),
    dist.ReduceOp.MIN: lambda stacked: stacked.amin(0),
    dist.ReduceOp.MAX: lambda stacked: stacked.amax(0),
}


class LoopbackGroup(dist.ProcessGroup):
    """One rank's view of a group of threads.

    It has messages, `allgather`, `allreduce`, `broadcast` and `barrier`, as Python calls them:
    what torch calls from C++, as DistributedDataParallel does, needs real processes.
    """

    def __init__(
        self, wires: Wires, name: str, rank: int, world_size: int, timeout: timedelta
    ) -> None:
        super().__init__(rank, world_size)  # type: ignore[call-arg]
        self._wires, self._name = wires, name
        self._rank, self._world_size = rank, world_size
        self._options = SimpleNamespace(_timeout=timeout)
        self._numbers = itertools.count()

    @property
    def group_name(self) -> str:  # type: ignore[override]
        """The same on every rank of the group; each thread has its own groups of that name."""
        return self._name

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """For torch's messages."""
        return BACKEND

    def _get_backend(self, device: torch.device) -> Any:
        """Where the group's timeout is found, as `options._timeout`."""
        return SimpleNamespace(options=self._options)

    def send(self, tensors: Sequence[Tensor], target: int, tag: int) -> Delivery:
        """Starts a message. `target` is a rank of the group."""
        (tensor,) = tensors
        return self._wires.send(Address(self._name, self._rank, target, tag), tensor, self._seconds)

    def recv(self, tensors: Sequence[Tensor], source: int, tag: int) -> Delivery:
        """Starts the other end of a message."""
        (tensor,) = tensors
        return self._wires.receive(
            Address(self._name, source, self._rank, tag), tensor, self._seconds
        )

    def allgather(  # type: ignore[override]
        self, outputs: Sequence[Sequence[Tensor]], inputs: Sequence[Tensor], opts: Any = None
    ) -> Meeting:
        """Every rank's tensor, to every rank."""
        (into,) = outputs

        def finish(brought: list[list[Tensor]]) -> None:
            for target, (source,) in zip(into, brought, strict=True):
                copy_bits("all_gather", source, target)

        return self._meet("all_gather", _copies(inputs), finish)

    def allreduce(self, tensors: Sequence[Tensor], opts: Any) -> Meeting:  # type: ignore[override]
        """The sum, mean, product, minimum or maximum, taken in order of rank on every rank."""
        operation = opts.reduceOp.op
        reduce = _REDUCTIONS[operation]

        def finish(brought: list[list[Tensor]]) -> None:
            for target, sources in zip(tensors, zip(*brought, strict=True), strict=True):
                copy_bits("all_reduce", reduce(torch.stack(sources)), target)

        return self._meet(f"all_reduce ({operation.name})", _copies(tensors), finish)

    def broadcast(self, tensors: Sequence[Tensor], opts: Any) -> Meeting:  # type: ignore[override]
        """The root's tensors, to every rank."""
        root = opts.rootRank

        def finish(brought: list[list[Tensor]]) -> None:
            for target, source in zip(tensors, brought[root], strict=True):
                copy_bits("broadcast", source, target)

        return self._meet(f"broadcast from {root}", _copies(tensors), finish)

    def barrier(self, opts: Any = None) -> Meeting:
        """Nothing but the wait for all ranks."""
        return self._meet("barrier", [], lambda brought: None)

    @property
    def _seconds(self) -> float:
        seconds: float = self._options._timeout.total_seconds()
        return seconds

    def _meet(
        self, what: str, brings: list[Tensor], finish: Callable[[list[list[Tensor]]], None]
    ) -> Meeting:
        """Collectives of a group are matched by their order."""
        key = (self._name, next(self._numbers))
        self._wires.enter(key, self._rank, self._world_size, what, brings)
        return Meeting(self._wires, key, self._rank, finish, self._seconds)


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Of the moment: a rank that has its result goes on to change its tensors."""
    with torch.no_grad():
        return [tensor.detach().clone() for tensor in tensors]


def _create(options: Any, _: Any) -> dist.ProcessGroup:
    """What torch asks for a group of this backend."""
    wires = seat()
    if wires is None:
        raise InvalidArgument(
            "backend",
            expected="a backend that joins processes",
            got=f"{BACKEND!r} outside of a ringspan.testing.loopback.Loopback",
        )
    return LoopbackGroup(
        wires, options.group_id, options.group_rank, options.group_size, options.timeout
    )


dist.Backend.register_backend(BACKEND, _create, extended_api=True, devices=["cpu"])
