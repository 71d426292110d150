"""Layouts refuse by name what does not fit, and say so to whoever is not in the group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ringspan import Grid, Layout
from ringspan.errors import InvalidArgument
from ringspan.plan.groups import Ranks, process_group


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"N": 5, "tokens": "x"}, "tokens"),
        ({"N": 5, "tokens": 5}, "tokens"),
        ({"N": Grid(2, 3), "tokens": "x"}, "tokens"),
        ({"N": 2**53 + 1}, "N"),
        ({"N": Grid(2**30, 2**30)}, "N"),
        ({"N": 5, "world_size": 2**31}, "world_size"),
        ({"N": 5, "world_size": True}, "world_size"),
        ({"N": 5, "world_size": 2, "weights": (10**400, 1)}, "weights"),
        ({"N": 5, "world_size": 2, "weights": (1e308, 1e308)}, "weights"),
        ({"N": 5, "world_size": 2, "weights": (10**308, 1e308)}, "weights"),
        ({"N": 5, "world_size": 2, "weights": (True, 1)}, "weights"),
        ({"N": 5, "world_size": 2, "weights": ("a", "b")}, "weights"),
        ({"N": 5, "world_size": 2, "weights": 3}, "weights"),
        ({"N": 3, "world_size": 2, "sizes": (True, 2)}, "sizes"),
        ({"N": 3, "world_size": 2, "sizes": (1.0, 2.0)}, "sizes"),
        ({"N": 3, "world_size": 2, "sizes": "ab"}, "sizes"),
    ],
)
def test_an_argument_of_another_kind_or_size_is_refused_by_name(
    arguments: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidArgument, match="expected") as refusal:
        Layout(**arguments)
    assert refusal.value.argument == name


@pytest.mark.parametrize("rank", [2, -1, 1.0, True, "0", None])
def test_only_an_integer_within_the_layout_is_a_rank(rank: Any) -> None:
    with pytest.raises(InvalidArgument, match="rank"):
        Layout(5, 2).positions(rank)


@pytest.mark.parametrize("x", [None, [1, 2, 3], np.zeros((1, 3))])
def test_what_is_no_tensor_is_neither_sharded_nor_gathered(x: Any) -> None:
    for function in (Layout(3).shard, Layout(3).gather):
        with pytest.raises(InvalidArgument, match=r"x: expected a torch\.Tensor, got"):
            function(x)


@pytest.mark.parametrize("dim", [2, -3, 1.0, "1", None, True])
def test_a_dimension_that_is_not_there_is_refused(dim: Any) -> None:
    for function in (Layout(3).shard, Layout(3).gather):
        with pytest.raises(InvalidArgument) as refusal:
            function(torch.zeros(1, 3), dim=dim)
        assert refusal.value.argument == "dim"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    store = f"file://{tmp_path / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_group_of_another_size_than_the_layout_is_refused() -> None:
    for function in (Layout(4, 2).shard, Layout(8, 2).gather):
        with pytest.raises(InvalidArgument, match="a group of 2 ranks, as the layout has, got 1"):
            function(torch.zeros(1, 4))


def test_a_process_outside_the_group_is_told_so() -> None:
    # What torch.distributed.new_group returns to processes that are not among its ranks.
    outside = torch.distributed.GroupMember.NON_GROUP_MEMBER
    for function in (Ranks.of, process_group):
        with pytest.raises(InvalidArgument, match="a group that this process is a member of"):
            function(outside)
