"""Where a failure began, as the ranks' notices to each other tell."""

from __future__ import annotations

import contextlib
import os
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
import torch.distributed as dist
from ringspan.engine.ring.failure import witnessed
from ringspan.errors import MessageCorrupted, PeerLost, RanksDisagree, RingError, RingTimeout
from ringspan.testing.ranks import Ring

from tests.failing.processes import free_port

if TYPE_CHECKING:
    from collections.abc import Callable

    Error = tuple[type[RingError], int]
    Run = Callable[..., list[Any]]


def notice(
    rank: int, errors: dict[int, Error], late: dict[int, float], facts: dict[int, str]
) -> RingError | None:
    """What `witnessed` makes of each rank's error; ranks without one keep silent."""
    group = dist.new_group()
    if rank not in errors:
        return None
    time.sleep(late.get(rank, 0))
    kind, peer = errors[rank]
    error = kind.between(rank, peer, step=rank + 1, direction="receive", got="a test")
    start = time.monotonic()
    found = witnessed(group, error, {"pattern": facts.get(rank, "Dense()"), "causal": "True"})
    assert time.monotonic() - start < 2
    return found


def told(run_ring: Run, errors: dict[int, Error], **kinds: Any) -> list[Any]:
    return run_ring(4, notice, errors, kinds.get("late", {}), kinds.get("facts", {}))


def named(error: RingError) -> tuple[type[RingError], int | None, int | None, int | None]:
    return type(error), error.rank, error.peer, error.step


@pytest.mark.parametrize("late", [{}, {2: 0.5}, {0: 0.4, 1: 0.8, 2: 1.2}, {2: 0.3, 1: 0.6}])
def test_all_name_the_rank_that_left_no_notice(run_ring: Run, late: dict[int, float]) -> None:
    errors: dict[int, Error] = {0: (PeerLost, 3), 1: (PeerLost, 0), 2: (PeerLost, 1)}
    found = told(run_ring, errors, late=late)
    for rank in range(3):
        assert named(found[rank]) == (PeerLost, rank, 3, rank + 1)
        assert found[rank].direction == "receive"
    assert str(found[0]) == (
        "rank 0, step 1: expected to receive from rank 3, got a test; rank 3 had reported nothing. "
        "Look for rank 3's own error first"
    )
    assert (
        "expected to receive from rank 0, got a test; rank 0 had reported: step 1: expected to "
        "receive from rank 3, got a test; rank 3 had reported nothing" in str(found[1])
    )


def test_who_lost_a_rank_that_gave_up_names_the_silent_one(run_ring: Run) -> None:
    found = told(run_ring, {0: (RingTimeout, 3), 1: (PeerLost, 0), 2: (RingTimeout, 3)})
    assert [named(each) for each in found[:3]] == [
        (RingTimeout, rank, 3, rank + 1) for rank in range(3)
    ]


def test_a_rank_with_an_error_of_its_own_is_where_it_began(run_ring: Run) -> None:
    found = told(run_ring, {0: (MessageCorrupted, 1), 2: (PeerLost, 0), 3: (RingTimeout, 2)})
    assert named(found[0]) == (MessageCorrupted, 0, 1, 1)
    assert named(found[2]) == (PeerLost, 2, 0, 3)
    assert named(found[3]) == (RingTimeout, 3, 0, 4)
    assert "rank 0 had reported: step 1: expected to receive from rank 1" in str(found[3])


def test_ranks_in_different_calls_disagree(run_ring: Run) -> None:
    errors: dict[int, Error] = {
        0: (RingTimeout, 3),
        1: (RingTimeout, 3),
        2: (RingTimeout, 1),
        3: (PeerLost, 2),
    }
    found = told(run_ring, errors, facts={3: "Dense(window=(8, 0))"})
    for error in found:
        assert type(error) is RanksDisagree
        assert error.argument == "pattern"
    assert (found[0].rank, found[0].peer) == (0, 3)
    assert (
        "pattern: expected the same on every rank; rank 0 has Dense(), got Dense(window=(8, 0)) on "
        "rank 3; they waited for each other in different calls (rank 0, step 1: expected to "
        "receive from rank 3, got a test)" in str(found[0])
    )


def test_ranks_in_one_call_that_waited_for_each_other_are_slow(run_ring: Run) -> None:
    found = told(run_ring, {0: (RingTimeout, 1), 1: (PeerLost, 0)})
    assert named(found[0]) == (RingTimeout, 0, 1, 1)
    assert named(found[1]) == (RingTimeout, 1, 0, 2)
    for error in found[:2]:
        assert "a slow one needs a longer timeout in init_process_group" in str(error)


def die_with_the_store(rank: int, port: int) -> tuple[RingError, float]:
    """Rank 2 keeps a store of its own for the group, and goes."""
    dist.barrier()
    dist.destroy_process_group()
    store = dist.TCPStore(
        "127.0.0.1",
        port,
        3,
        is_master=rank == 2,
        timeout=timedelta(seconds=20),
    )
    dist.init_process_group("gloo", store=store, rank=rank, world_size=3)
    dist.barrier()
    if rank == 2:
        os._exit(0)
    time.sleep(0.5)
    group = dist.group.WORLD
    assert group is not None
    error = PeerLost.between(rank, 1 - rank, step=1, direction="send", got="a test")
    start = time.monotonic()
    return witnessed(group, error), time.monotonic() - start


def test_a_store_that_is_gone_is_no_second_failure(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with contextlib.closing(Ring(3)) as ring:
        answers = ring.run(die_with_the_store, free_port(), answers=2)
    for rank, (error, seconds) in enumerate(answers):
        assert named(error) == (PeerLost, rank, 1 - rank, 1)
        assert "the group's store does not answer (plainly launched, it lives in" in str(error)
        assert seconds < 2
    assert "TCPStore" not in capfd.readouterr().err
