"""The processes that measure together: those that torchrun started, or this one alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    from ringspan.bench.settings import Settings

__all__ = ["World", "joined", "own_rank"]

T = TypeVar("T")

_LONGEST_CALL = 20
"""In multiples of the patience: a length within it, doubled, takes four times as long if dense."""


@dataclass(frozen=True, slots=True)
class World:
    """This process among all that measure. Its collectives travel by way of the CPU."""

    rank: int
    size: int
    neighbours: int
    """Processes on this machine, this one included."""
    device: torch.device
    group: Any = None

    def settle(self) -> None:
        """Waits for this process's device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def meet(self) -> None:
        """Waits for every process, and for its device."""
        self.settle()
        self.slowest(0.0)

    def slowest(self, *seconds: float) -> tuple[float, ...]:
        """The largest of each number over all processes: the same on each of them."""
        times = torch.tensor(seconds, dtype=torch.float64)
        if self.group is not None:
            dist.all_reduce(times, dist.ReduceOp.MAX, group=self.group)
        return tuple(times.tolist())

    def from_first(self, thing: T) -> T:
        """What rank 0 has."""
        if self.group is None:
            return thing
        things = [thing]
        dist.broadcast_object_list(things, group=self.group, group_src=0)
        return things[0]

    def from_all(self, thing: T) -> list[T]:
        """What each rank has, by rank."""
        if self.group is None:
            return [thing]
        things: list[Any] = [None] * self.size
        dist.all_gather_object(things, thing, group=self.group)
        return things

    @contextmanager
    def own_group(self) -> Iterator[Any]:
        """A group of the same processes, in which nothing was sent or allocated before."""
        if self.group is None:
            yield None
            return
        group = dist.new_group()
        yield group
        # Not in a `finally`: a group in which a call failed is left to the end of the process.
        dist.destroy_process_group(group)


def own_rank() -> int:
    """This process's rank, as torchrun says; 0 without it."""
    return int(os.environ.get("RANK", "0"))


@contextmanager
def joined(settings: Settings) -> Iterator[World]:
    """Joins the processes that torchrun started.

    Raises:
        InvalidArgument: the device or process group is not there.
    """
    size, neighbours = (int(os.environ.get(x, "1")) for x in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    device = _device(settings)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backends = _backends(settings, device, neighbours)
    if size == 1:
        yield World(0, 1, 1, device)
        return
    timeout = timedelta(seconds=600 + _LONGEST_CALL * settings.patience)
    dist.init_process_group(backends, timeout=timeout)
    try:
        yield World(dist.get_rank(), size, neighbours, device, dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def _device(settings: Settings) -> torch.device:
    wanted = settings.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise InvalidArgument("--device", expected="cpu, for torch sees no GPU", got=wanted)
    local = int(os.environ.get("LOCAL_RANK", "0"))
    return torch.device("cuda", local % torch.cuda.device_count())


def _backends(settings: Settings, device: torch.device, neighbours: int) -> str:
    """As `init_process_group` takes them: always one that carries tensors of the CPU."""
    wanted = settings.process_group
    if device.type == "cpu":
        if wanted == "nccl":
            raise InvalidArgument("--process-group", expected="gloo on a CPU", got=wanted)
        return "gloo"
    crowded = neighbours > torch.cuda.device_count()
    possible = dist.is_nccl_available() and not crowded
    if wanted == "nccl" and not possible:
        got = f"{neighbours} ranks on {torch.cuda.device_count()} GPUs" if crowded else "none"
        raise InvalidArgument("--process-group", expected="NCCL and a GPU per rank", got=got)
    return f"cpu:gloo,cuda:{wanted or ('nccl' if possible else 'gloo')}"
