"""How much memory each rank may take, and how much a call takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from ringspan_registry import detect

if TYPE_CHECKING:
    from ringspan.bench.world import World

__all__ = ["peak_bytes", "shortage"]

_GIB = 2**30
_SPARE = 0.1
"""Share of the free memory that stays untouched: estimates count tensors alone."""


def shortage(needed: Sequence[int], place: torch.device, world: World, limit: float | None) -> str:
    """Which rank would need more than it may take; empty where none does. A collective.

    Args:
        needed: bytes of tensors, per rank.
        place: in whose memory, this rank's device or the host.
        world: the ranks.
        limit: GiB per rank; None: what is free, divided between the ranks of a machine or GPU.
    """
    allowed = world.from_all(_allowed(place, world, limit))
    for rank, (need, most) in enumerate(zip(needed, allowed, strict=True)):
        if most is not None and need > most:
            available = f"{most / _GIB:.3g} GiB {'allowed' if limit else 'free'}"
            return f"would need {need / _GIB:.3g} GiB of {available} on rank {rank}"
    return ""


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors alive at once during `function`, above those before it.

    On CUDA as the allocator counts; on a CPU as the profiler does, which slows the call.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        kept = function()
        torch.cuda.synchronize(device)
        del kept
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        kept = function()
    del kept
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    alive = peak = 0
    for _, change in changes:
        alive += change
        peak = max(peak, alive)
    return peak


def _allowed(place: torch.device, world: World, limit: float | None) -> int | None:
    free = _free(place, world)
    amounts = [] if free is None else [int(free * (1 - _SPARE))]
    if limit is not None:
        amounts.append(int(limit * _GIB))
    return min(amounts, default=None)


def _free(place: torch.device, world: World) -> int | None:
    """This rank's part of the free memory; None where the system does not say."""
    if place.type == "cuda":
        sharing = -(-world.neighbours // torch.cuda.device_count())
        free, _ = torch.cuda.mem_get_info(place)
        cached = torch.cuda.memory_reserved(place) - torch.cuda.memory_allocated(place)
        return free // sharing + cached
    amounts = [amount for amount in (_available(), _left_to_container()) if amount is not None]
    return min(amounts) // world.neighbours if amounts else None


def _available() -> int | None:
    """Main memory that programs may still take, caches included."""
    free = _table(Path("/proc/meminfo")).get("MemAvailable:")
    return detect("cpu").memory_free if free is None else free * 1024


def _left_to_container() -> int | None:
    """What a container's limit leaves, caches included; None without one."""
    folder = Path("/sys/fs/cgroup")
    limit, used = folder / "memory.max", folder / "memory.current"
    if not (limit.is_file() and used.is_file()) or (most := limit.read_text().strip()) == "max":
        return None
    cached = _table(folder / "memory.stat").get("inactive_file", 0)
    return int(most) - int(used.read_text()) + cached


def _table(file: Path) -> dict[str, int]:
    """The numbers of a file that has a name and a number in each line."""
    if not file.is_file():
        return {}
    lines = (line.split() for line in file.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}
