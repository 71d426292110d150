"""Transfers travel while kernels run: the order in which a ring posts, computes and waits."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from ringspan.catalogue import catalogue
from ringspan.testing.loopback import Loopback
from ringspan.testing.site import plugged_in

from tests.recorded import events

WORLD_SIZE = 3
HEADS = 2
ROWS = 4


@pytest.fixture(scope="module")
def loopback() -> Iterator[Loopback]:
    """Three ranks whose calls are written down."""
    with (
        plugged_in("recorded", "tests.recorded"),
        contextlib.closing(Loopback(WORLD_SIZE)) as loopback,
    ):
        catalogue.cache_clear()
        with rs.use(backend="recorded", communicator="recorded"):
            yield loopback
    catalogue.cache_clear()


def attend(rank: int) -> tuple[list[str], list[str]]:
    """What one rank does in the forward pass, and in the backward."""
    layout = rs.Layout(ROWS * WORLD_SIZE, WORLD_SIZE)
    x = torch.ones(1, ROWS, HEADS, 8)
    q, k, v = (x.clone().requires_grad_() for _ in range(3))
    events()
    out = rs.attention(q, k, v, layout=layout, group=dist.group.WORLD)
    forward = events()
    torch.autograd.grad(out, (q, k, v), x)
    return forward, events()


def test_the_next_rows_are_posted_before_the_kernels_of_those_at_hand(loopback: Loopback) -> None:
    for forward, _ in loopback.run(attend):
        assert forward == [
            "post rows 1", "compute",
            "wait rows 1", "post rows 2", "compute",
            "wait rows 2", "compute",
        ]  # fmt: skip


def test_gradients_travel_while_the_next_kernels_run_and_own_rows_are_last(
    loopback: Loopback,
) -> None:
    for _, backward in loopback.run(attend):
        assert backward == [
            "post rows 1",
            "wait rows 1", "post rows 2", "compute", "post gradients 1",
            "wait rows 2", "compute", "wait gradients 1", "post gradients 2",
            "compute", "wait gradients 2",
        ]  # fmt: skip


def exposed(written: list[str]) -> list[str]:
    """The messages that were waited for without any computation since they were posted."""
    posted: list[str] = []
    hidden: list[str] = []
    found = []
    for event in written:
        verb, _, message = event.partition(" ")
        if verb == "post":
            posted.append(message)
        elif verb == "compute":
            hidden, posted = [*hidden, *posted], []
        elif message in hidden:
            hidden.remove(message)
        else:
            posted.remove(message)
            found.append(message)
    return found


@pytest.mark.parametrize("message_bytes", [None, 1])
def test_every_message_but_the_first_of_a_backward_pass_hides_behind_kernels(
    loopback: Loopback, message_bytes: int | None
) -> None:
    """Also where each head's rows travel in a message of their own."""
    with rs.use(message_bytes=message_bytes):
        answers = loopback.run(attend)
    for forward, backward in answers:
        assert (exposed(forward), exposed(backward)) == ([], ["rows 1"])
