"""The rings that other tests run on."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from ringspan.testing.ranks import Ring

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., list[Any]]


def summed(rank: int, x: torch.Tensor) -> torch.Tensor:
    total = x * (rank + 1)
    dist.all_reduce(total)
    return total


def fail_on(rank: int, failing: int) -> None:
    if rank == failing:
        raise KeyError("broken")
    dist.barrier()


def process(rank: int) -> int:
    return os.getpid()


def die(rank: int) -> None:
    if rank == 1:
        os._exit(7)
    dist.barrier()


@pytest.mark.parametrize("world_size", [1, 2])
def test_every_rank_runs_the_function_in_one_group(run_ring: Run, world_size: int) -> None:
    results = run_ring(world_size, summed, torch.ones(2))
    expected = torch.full((2,), world_size * (world_size + 1) / 2)
    assert len(results) == world_size
    assert all(torch.equal(result, expected) for result in results)


def test_ranks_stay_up_between_calls(run_ring: Run) -> None:
    pids = run_ring(2, process)
    assert len({*pids, os.getpid()}) == 3
    assert run_ring(2, process) == pids


def test_the_first_failure_is_raised_with_its_rank(run_ring: Run) -> None:
    with pytest.raises(KeyError, match="broken") as caught:
        run_ring(2, fail_on, 1)
    assert caught.value.__notes__[0].startswith("on rank 1 of 2:\nTraceback")


def test_a_new_ring_replaces_one_that_failed(run_ring: Run) -> None:
    before = run_ring(2, process)
    with pytest.raises(KeyError):
        run_ring(2, fail_on, 0)
    assert set(run_ring(2, process)).isdisjoint(before)


def test_a_rank_that_dies_is_named() -> None:
    with (
        contextlib.closing(Ring(2)) as ring,
        pytest.raises(ChildProcessError, match="rank 1 of 2 ended with exit code 7"),
    ):
        ring.run(die)
