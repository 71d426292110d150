"""The `isend` communicator between real processes, over gloo."""

import multiprocessing
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from ringspan.contracts import Communicator, DeviceInfo, InvalidArgument
from ringspan_isend import Isend, ringspan_communicators
from ringspan_isend.route import Route, choose

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.process import BaseProcess

RANKS = Path(__file__).with_name("ranks.py")


class World:
    """Processes that run scenarios of `ranks.py` together."""

    def __init__(self, world_size: int, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for rank in range(world_size):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=runpy.run_path,
                args=(str(RANKS), {"job": (theirs, rank, world_size, str(folder / "store"))}),
                kwargs={"run_name": "rank"},
                daemon=True,
            )
            process.start()
            theirs.close()
            self.pipes.append(ours)
            self.processes.append(process)

    def run(self, scenario: str, *, ranks: int | None = None) -> None:
        """Has all ranks run `scenario`; the first `ranks` of them must live to say it passed."""
        for pipe in self.pipes:
            pipe.send(scenario)
        for rank, pipe in enumerate(self.pipes[:ranks]):
            assert pipe.poll(90), f"rank {rank} did not answer"
            failure = pipe.recv()
            assert failure is None, f"rank {rank}: {failure}"

    def close(self) -> None:
        for process, pipe in zip(self.processes, self.pipes, strict=True):
            pipe.close()
            process.terminate()
            process.join()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], World]]:
    """Worlds of two and three ranks, started when first asked for and shared by the tests."""
    started: dict[int, World] = {}

    def world(size: int) -> World:
        if size not in started:
            started[size] = World(size, tmp_path_factory.mktemp("world"))
        return started[size]

    yield world
    for each in started.values():
        each.close()


@pytest.fixture
def mortal_world(tmp_path: Path) -> Iterator[World]:
    """Two ranks for one test only, which may break them."""
    world = World(2, tmp_path)
    yield world
    world.close()


Worlds = Callable[[int], World]


@pytest.mark.parametrize("size", [2, 3])
def test_values_travel_around_the_ring(worlds: Worlds, size: int) -> None:
    worlds(size).run("values_travel_around_the_ring")


def test_a_megabyte_each_way_does_not_deadlock(worlds: Worlds) -> None:
    worlds(3).run("a_megabyte_each_way_does_not_deadlock")


def test_every_dtype_travels(worlds: Worlds) -> None:
    worlds(2).run("every_dtype_travels")


def test_bytes_are_counted_as_sent_and_received(worlds: Worlds) -> None:
    worlds(3).run("bytes_are_counted_as_sent_and_received")


@pytest.mark.parametrize("size", [2, 3])
def test_tags_match_whatever_the_posting_order(worlds: Worlds, size: int) -> None:
    worlds(size).run("tags_match_whatever_the_posting_order")


def test_grouped_messages_match_by_tag_too(worlds: Worlds) -> None:
    worlds(3).run("grouped_messages_match_by_tag_too")


def test_too_many_grouped_messages_are_refused(worlds: Worlds) -> None:
    worlds(2).run("too_many_grouped_messages_are_refused")


def test_staged_messages_arrive_where_they_were_wanted(worlds: Worlds) -> None:
    worlds(3).run("staged_messages_arrive_where_they_were_wanted")


def test_peers_are_ranks_of_the_group(worlds: Worlds) -> None:
    worlds(3).run("peers_are_ranks_of_the_group")


def test_empty_tensors_do_not_travel(worlds: Worlds) -> None:
    worlds(2).run("empty_tensors_do_not_travel")


def test_waiting_twice_is_waiting_once(worlds: Worlds) -> None:
    worlds(2).run("waiting_twice_is_waiting_once")


def test_tensors_stay_alive_until_waited_for(worlds: Worlds) -> None:
    worlds(2).run("tensors_stay_alive_until_waited_for")


def test_bad_messages_are_refused_before_anything_is_posted(worlds: Worlds) -> None:
    worlds(2).run("bad_messages_are_refused_before_anything_is_posted")


def test_a_tag_in_flight_is_not_used_again(worlds: Worlds) -> None:
    worlds(2).run("a_tag_in_flight_is_not_used_again")


def test_a_silent_peer_is_an_error_after_the_timeout(mortal_world: World) -> None:
    mortal_world.run("a_silent_peer_is_an_error_after_the_timeout")


def test_a_dead_peer_is_an_error_and_not_a_hang(mortal_world: World) -> None:
    mortal_world.run("a_dead_peer_is_an_error", ranks=1)


@pytest.mark.parametrize(
    ("backends", "device", "expected"),
    [
        ("cpu:gloo,cuda:gloo", "cpu", Route.DIRECT),
        ("cpu:gloo,cuda:gloo", "cuda", Route.STAGED),
        ("cpu:gloo", "cuda", Route.STAGED),
        ("cpu:gloo,cuda:nccl", "cpu", Route.DIRECT),
        ("cpu:gloo,cuda:nccl", "cuda", Route.GROUPED),
        ("cuda:nccl", "cuda", Route.GROUPED),
    ],
)
def test_the_route_follows_from_the_groups_backends(
    backends: str, device: str, expected: Route
) -> None:
    assert choose(backends, device) is expected


def test_a_group_that_cannot_carry_the_device_is_refused() -> None:
    with pytest.raises(InvalidArgument, match=r"carry cpu tensors, got one with .* cuda:nccl"):
        choose("cuda:nccl", "cpu")


def test_the_hook_offers_isend() -> None:
    (offered,) = ringspan_communicators()
    assert isinstance(offered, Communicator)
    assert offered.name == "isend"


def test_the_probe_says_yes_with_torchs_version() -> None:
    found = Isend().probe(DeviceInfo(type="cpu"))
    assert (found.usable, found.version) == (True, torch.__version__)


def test_a_torch_without_distributed_is_a_reason_and_not_a_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    found = Isend().probe(DeviceInfo(type="cpu"))
    assert not found.usable
    assert "without torch.distributed" in found.reason
