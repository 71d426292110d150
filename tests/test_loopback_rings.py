"""Rings of threads: many more world sizes, layouts and calls than processes have the time for."""

from __future__ import annotations

import contextlib
import gc
import time
from dataclasses import replace

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.errors import PeerLost, RingError, RingTimeout
from ringspan.testing import assert_exact
from ringspan.testing.case import Case
from ringspan.testing.loopback import Loopback
from ringspan.testing.strategies import cases
from torch import Tensor

from tests.front_door import exact
from tests.test_ring_modes import (
    EVERYTHING,
    attend,
    check,
    joined,
    layout_of,
    shapes,
    three_ways_then_one,
)
from tests.worlds import Run

WORLD_SIZES = range(1, 10)
MESSAGES = (None, 1, 200)
"""Bytes in one message: a step whole, a head's rows each, a few of them."""


@pytest.mark.filterwarnings("ignore:torchscale moves the output")
@settings(max_examples=300)
@given(cases(max_N=80), st.sampled_from(WORLD_SIZES), st.sampled_from(MESSAGES), st.data())
def test_any_call_is_exact_at_any_world_size_on_any_layout(
    run_loopback: Run,
    case: Case,
    world_size: int,
    message_bytes: int | None,
    data: st.DataObject,
) -> None:
    # Queries of their own are for one rank; the layout says how tokens are stored.
    case = replace(case, positions=None, cross=None, stored=None)
    with rs.use(message_bytes=message_bytes):
        check(run_loopback, case, data.draw(shapes(case, world_size)))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("message_bytes", MESSAGES)
def test_all_modes_at_once_are_exact_on_threads(
    run_loopback: Run, world_size: int, message_bytes: int | None
) -> None:
    with rs.use(message_bytes=message_bytes):
        check(run_loopback, EVERYTHING, {"world_size": world_size})


@pytest.mark.parametrize("world_size", [2, 5, 9])
def test_checked_messages_carry_the_same_rows(run_loopback: Run, world_size: int) -> None:
    layout = layout_of(EVERYTHING, {"world_size": world_size})
    with rs.use(debug=True, message_bytes=200):
        answers = run_loopback(world_size, attend, EVERYTHING, {"world_size": world_size})
    assert_exact(joined(layout, [parts for parts, _, _ in answers]), exact(EVERYTHING))


def attended(rank: int, world_size: int, scale: float = 1.0) -> Tensor:
    """A small call, forward and backward; the gradient of its queries on all ranks."""
    layout = rs.Layout(8 * world_size, world_size)
    x = torch.arange(8.0 * world_size * 4).cos().view(1, -1, 1, 4)
    q = layout.shard(x, rank).requires_grad_()
    out = rs.attention(q, q, q, scale=scale, layout=layout, group=dist.group.WORLD)
    (grad,) = torch.autograd.grad(out, q, layout.shard(x.sin(), rank))
    return layout.gather(grad, dist.group.WORLD)


def test_gather_works_between_threads(run_loopback: Run) -> None:
    (alone,) = run_loopback(1, attended, 1)
    assert alone.shape == (1, 8, 1, 4)
    grads = run_loopback(4, attended, 4)
    x = torch.arange(32.0 * 4).cos().view(1, -1, 1, 4)
    q = x.clone().requires_grad_()
    expected = torch.autograd.grad(rs.attention(q, q, q, scale=1.0), q, x.sin())[0]
    for grad in grads:
        torch.testing.assert_close(grad, expected)


def test_calls_leave_no_tensor_behind(run_loopback: Run) -> None:
    """Threads share their process, so what a ring keeps for each group is kept once per rank."""

    def living() -> int:
        gc.collect()
        return sum(type(each) is Tensor for each in gc.get_objects())

    run_loopback(4, attended, 4)
    before = living()
    for _ in range(50):
        run_loopback(4, attended, 4)
    assert living() == before


def test_ranks_that_disagree_are_told_and_find_together_again(run_loopback: Run) -> None:
    assert run_loopback(3, three_ways_then_one) == [["scale", "ran"]] * 3


def broken_off(rank: int, errors: dict[int, RingError]) -> None:
    attended(rank, 3)
    dist.barrier()
    if rank == 1:
        raise KeyError("enough")
    try:
        attended(rank, 3)
    except RingError as error:
        errors[rank] = error
        raise


def test_when_a_rank_fails_the_others_lose_their_peer_at_once() -> None:
    errors: dict[int, RingError] = {}
    started = time.monotonic()
    with (
        contextlib.closing(Loopback(3, timeout=100)) as loopback,
        pytest.raises(KeyError, match="enough"),
    ):
        loopback.run(broken_off, errors)
    assert time.monotonic() - started < 50
    assert {rank: type(error) for rank, error in errors.items()} == {0: PeerLost, 2: PeerLost}
    assert [error.rank for _, error in sorted(errors.items())] == [0, 2]


def left_waiting(rank: int) -> str:
    attended(rank, 2)
    if rank == 1:
        return ""
    with pytest.raises(RingTimeout) as caught:
        attended(rank, 2)
    return f"{caught.value.rank} waits for {caught.value.peer}"


def test_a_silent_rank_is_a_timeout() -> None:
    with contextlib.closing(Loopback(2, timeout=0.5)) as loopback:
        assert loopback.run(left_waiting)[0] == "0 waits for 1"


def test_settings_around_a_ring_hold_in_its_ranks(run_loopback: Run) -> None:
    def chosen(rank: int) -> str:
        attended(rank, 2)
        run = rs.last_run()
        assert run is not None
        return run.decisions["backend (full)"].chosen

    with rs.use(backend="manual"):
        assert run_loopback(2, chosen) == ["manual"] * 2
