"""A number from each rank."""

from __future__ import annotations

import contextlib
import os
import signal
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from ringspan.engine.ring.numbers import from_each
from ringspan.errors import PeerLost, RingTimeout
from ringspan.testing.ranks import Ring
from ringspan_isend import Isend

if TYPE_CHECKING:
    from collections.abc import Callable

CPU = torch.device("cpu")


def squares(rank: int) -> list[list[int]]:
    exchange = Isend().open(dist.group.WORLD, CPU)
    return [from_each(exchange, call + rank**2, CPU) for call in range(20)]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_every_rank_hears_every_number(run_ring: Callable[..., list[Any]], world_size: int) -> None:
    expected = [[call + rank**2 for rank in range(world_size)] for call in range(20)]
    assert run_ring(world_size, squares) == [expected] * world_size


def without_rank_1(rank: int, signalled: signal.Signals) -> str:
    exchange = Isend().open(dist.new_group(timeout=timedelta(seconds=2)), CPU)
    if rank == 1:
        os.kill(os.getpid(), signalled)
    with pytest.raises((PeerLost, RingTimeout)) as found:
        from_each(exchange, 7, CPU)
    assert (found.value.rank, found.value.peer, found.value.step) == (0, 1, 0)
    return type(found.value).__name__


@pytest.mark.parametrize(
    ("signalled", "kind"), [(signal.SIGKILL, "PeerLost"), (signal.SIGSTOP, "RingTimeout")]
)
def test_a_rank_that_does_not_come_is_named(signalled: signal.Signals, kind: str) -> None:
    with contextlib.closing(Ring(2)) as ring:
        assert ring.run(without_rank_1, signalled, answers=1) == [kind]
