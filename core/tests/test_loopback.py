"""Ranks that are threads: what a process group owes them, and how their rings end."""

from __future__ import annotations

import contextlib
import gc
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from ringspan.catalogue import configuration
from ringspan.errors import InvalidArgument
from ringspan.testing.loopback import Loopback

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., list[Any]]


@pytest.fixture
def loopback() -> Iterator[Loopback]:
    with contextlib.closing(Loopback(3)) as loopback:
        yield loopback


def identities(rank: int) -> tuple[Any, ...]:
    from ringspan.plan.groups import group_named, process_group

    group = process_group(None)
    assert group_named(group.group_name) is group
    assert dist.get_backend(group) == "loopback"
    return rank, dist.get_rank(), group.rank(), dist.get_world_size(group), group.group_name


@pytest.mark.parametrize("world_size", range(1, 10))
def test_every_thread_is_a_rank_of_a_default_group_of_its_own(world_size: int) -> None:
    with contextlib.closing(Loopback(world_size)) as loopback:
        found = loopback.run(identities)
    assert found == [(rank, rank, rank, world_size, "0") for rank in range(world_size)]


def test_other_threads_see_no_group(loopback: Loopback) -> None:
    seen = []

    def look(rank: int) -> None:
        dist.barrier()
        seen.append(dist.is_initialized())

    loopback.run(look)
    assert (seen, dist.is_initialized()) == ([True] * 3, False)


def collectives(rank: int) -> list[list[float]]:
    total, most = torch.tensor([rank + 1.0, 0.5]), torch.tensor([float(rank)])
    dist.all_reduce(total)
    dist.all_reduce(most, op=dist.ReduceOp.MAX)
    told = torch.full((2,), float(rank))
    dist.broadcast(told, src=1)
    gathered = [torch.empty(1) for _ in range(dist.get_world_size())]
    work = dist.all_gather(gathered, torch.tensor([10.0 * rank]), async_op=True)
    dist.barrier()
    assert work is not None
    work.wait()
    return [total.tolist(), most.tolist(), told.tolist(), torch.cat(gathered).tolist()]


def test_collectives_give_every_rank_the_same(loopback: Loopback) -> None:
    assert loopback.run(collectives) == [[[6, 1.5], [2], [1, 1], [0, 10, 20]]] * 3


def test_what_torch_builds_on_them_works_too(loopback: Loopback) -> None:
    def objects(rank: int) -> list[Any]:
        gathered: list[Any] = [None] * 3
        dist.all_gather_object(gathered, {"rank": rank})
        return gathered

    assert loopback.run(objects) == [[{"rank": 0}, {"rank": 1}, {"rank": 2}]] * 3


def smaller_groups(rank: int) -> list[float]:
    low, high = dist.new_group([0, 1]), dist.new_group([1, 2])
    answers = []
    for first, group in enumerate((low, high)):
        if rank in (first, first + 1):
            x = torch.tensor([float(rank)])
            dist.all_reduce(x, group=group)
            mine = dist.get_rank(group)
            there, here = torch.tensor([100.0 * first + rank]), torch.empty(1)
            works = [
                dist.isend(there, group=group, group_dst=1 - mine),
                dist.irecv(here, group=group, group_src=1 - mine),
            ]
            for work in works:
                assert work is not None
                work.wait()
            answers += [x.item(), here.item()]
    return answers


def test_smaller_groups_number_their_ranks_anew_and_do_not_mix(loopback: Loopback) -> None:
    assert loopback.run(smaller_groups) == [[1, 1], [1, 0, 3, 102], [3, 101]]


def by_tag(rank: int) -> list[float]:
    above, below = (rank + 1) % 3, (rank - 1) % 3
    sent = [dist.isend(torch.tensor([10.0 * rank + tag]), above, tag=tag) for tag in (3, 1, 2)]
    received = {tag: torch.empty(1) for tag in (1, 2, 3)}
    works = [dist.irecv(x, below, tag=tag) for tag, x in received.items()]
    for work in (*sent, *works):
        assert work is not None
        work.wait()
    return [x.item() for x in received.values()]


def test_messages_are_matched_by_tag(loopback: Loopback) -> None:
    assert loopback.run(by_tag) == [[21, 22, 23], [1, 2, 3], [11, 12, 13]]


def test_a_send_is_done_only_when_it_was_received(loopback: Loopback) -> None:
    """As with any transport once messages are large."""

    def postpone(rank: int) -> bool:
        if rank == 1:
            dist.barrier()
            dist.recv(torch.empty(1), 0)
        if rank == 0:
            work = dist.isend(torch.ones(1), 1)
            assert work is not None
            early = work.is_completed()
            dist.barrier()
            work.wait()
            return early
        if rank == 2:
            dist.barrier()
        return False

    assert loopback.run(postpone) == [False] * 3


def test_inference_mode_on_one_side_is_no_matter_of_the_other(loopback: Loopback) -> None:
    def mixed(rank: int) -> float:
        with torch.inference_mode(rank == 0):
            x, y = torch.full((1,), float(rank)), torch.empty(1)
        if rank == 2:
            return 0.0
        works = (dist.isend(x, 1 - rank), dist.irecv(y, 1 - rank))
        for work in works:
            assert work is not None
            work.wait()
        return y.item()

    assert loopback.run(mixed) == [1, 0, 0]


def test_the_store_is_one_for_all_ranks(loopback: Loopback) -> None:
    def keep(rank: int) -> tuple[bytes, int, bool, int]:
        group = dist.group.WORLD
        assert group is not None
        store = dist.distributed_c10d._get_process_group_store(group)
        store.set(f"of {rank}", str(rank))
        dist.barrier()
        found = store.get(f"of {(rank + 1) % 3}")
        store.add("total", rank)
        dist.barrier()
        gone = store.delete_key(f"of {rank}")
        dist.barrier()
        assert not store.check(["of 0"])
        store.clone().wait(["total"])
        return found, store.add("total", 0), gone, store.num_keys()

    found = loopback.run(keep)
    assert [answer[:3] for answer in found] == [(b"1", 3, True), (b"2", 3, True), (b"0", 3, True)]
    assert len({keys for *_, keys in found}) == 1


def fail_on(rank: int, failing: int, wait: Callable[[int], None]) -> None:
    if rank == failing:
        raise KeyError("broken")
    wait(failing)


def wait_for_a_message(source: int) -> None:
    dist.recv(torch.empty(1), source)


def wait_for_all(_: int) -> None:
    dist.barrier()


def look_in_the_store(_: int) -> None:
    group = dist.group.WORLD
    assert group is not None
    while not dist.distributed_c10d._get_process_group_store(group).check(["never"]):
        time.sleep(0.001)


@pytest.mark.parametrize("wait", [wait_for_a_message, wait_for_all, look_in_the_store])
@pytest.mark.parametrize("failing", [0, 2])
def test_a_failing_rank_is_named_and_ends_the_others_waiting(
    loopback: Loopback, failing: int, wait: Callable[[int], None]
) -> None:
    others = []

    def told(rank: int) -> None:
        try:
            fail_on(rank, failing, wait)
        except RuntimeError as error:
            others.append(str(error))
            raise

    started = time.monotonic()
    with pytest.raises(KeyError, match="broken") as caught:
        loopback.run(told)
    assert caught.value.__notes__ == [f"on rank {failing} of 3"]
    assert (
        others == [f"Connection closed by peer: rank {failing} failed with KeyError('broken')"] * 2
    )
    assert time.monotonic() - started < 10, "far below the loopback's timeout"
    assert not loopback.usable
    with pytest.raises(InvalidArgument, match="one that was closed"):
        loopback.run(identities)


@pytest.mark.parametrize("wait", [wait_for_a_message, wait_for_all])
def test_what_never_comes_is_an_error_within_the_timeout(wait: Callable[[int], None]) -> None:
    def left_alone(rank: int) -> str:
        if rank == 1:
            return ""
        with pytest.raises(RuntimeError, match="Timed out waiting for") as caught:
            wait(1)
        return str(caught.value)

    with contextlib.closing(Loopback(2, timeout=0.2)) as loopback:
        assert "1" in loopback.run(left_alone, timeout=20)[0]


def test_a_rank_that_does_not_answer_is_named() -> None:
    with (
        contextlib.closing(Loopback(2)) as loopback,
        pytest.raises(TimeoutError, match=r"ranks \[1\] of 2 did not answer in time"),
    ):
        loopback.run(lambda rank: time.sleep(2 * rank), timeout=0.2)


def test_another_size_or_dtype_is_an_error_on_both_ends(loopback: Loopback) -> None:
    def misfit(rank: int) -> str:
        sizes = (torch.ones(4), torch.ones(3), torch.ones(4, dtype=torch.float64))
        if rank == 0:
            works = [dist.isend(sizes[peer], peer) for peer in (1, 2)]
        else:
            works = [dist.irecv(torch.ones(4), 0)]
        for work in works:
            assert work is not None
            with pytest.raises(RuntimeError, match="came where") as caught:
                work.wait()
        return str(caught.value)

    assert loopback.run(misfit)[1] == (
        "the message of rank 0 to rank 1 with tag 0: [3] of torch.float32 came where "
        "[4] of torch.float32 were expected"
    )


def test_ranks_that_enter_different_collectives_are_all_told(loopback: Loopback) -> None:
    def different(rank: int) -> str:
        with pytest.raises(RuntimeError, match="different collectives") as caught:
            dist.barrier() if rank == 1 else dist.all_reduce(torch.ones(1))
        return str(caught.value)

    told = "{0: 'all_reduce (SUM)', 1: 'barrier', 2: 'all_reduce (SUM)'}"
    assert all(told in answer for answer in loopback.run(different))


def test_a_thousand_exchanges_leave_nothing_behind(loopback: Loopback) -> None:
    gone: list[weakref.ref[torch.Tensor]] = []

    def many(rank: int) -> None:
        above, below = (rank + 1) % 3, (rank - 1) % 3
        for tag in range(1000):
            sent, received = torch.full((2,), float(tag)), torch.empty(2)
            works = [dist.isend(sent, above, tag=tag), dist.irecv(received, below, tag=tag)]
            for work in works:
                assert work is not None
                work.wait()
            assert (received == tag).all()
            gone.extend((weakref.ref(sent), weakref.ref(received)))

    loopback.run(many)
    gc.collect()
    assert loopback.in_flight == 0
    assert [each for each in gone if each() is not None] == []


def test_what_a_rank_computed_does_not_outlive_the_call(loopback: Loopback) -> None:
    made = loopback.run(lambda rank: torch.ones(2))
    refs = [weakref.ref(x) for x in made]
    del made
    gc.collect()
    assert [ref() for ref in refs] == [None] * 3


def test_settings_of_the_calling_context_hold_in_every_rank(loopback: Loopback) -> None:
    def asked(rank: int) -> Any:
        return configuration().get("debug").value

    with configuration().use(debug=True):
        assert loopback.run(asked) == [True] * 3
    assert loopback.run(asked) == [False] * 3


def test_several_loopbacks_are_up_at_once(loopback: Loopback) -> None:
    with contextlib.closing(Loopback(2)) as other:
        for _ in range(3):
            assert len(loopback.run(collectives)) == 3
            assert other.run(summed) == [2, 2]
    assert len(loopback.run(collectives)) == 3


def summed(rank: int) -> float:
    x = torch.ones(1)
    dist.all_reduce(x)
    return x.item()


def test_a_loopback_needs_a_rank() -> None:
    with pytest.raises(InvalidArgument, match="world_size: expected at least 1, got 0"):
        Loopback(0)


def test_its_backend_is_for_its_threads_alone() -> None:
    with pytest.raises(InvalidArgument, match=r"outside of a ringspan\.testing\.loopback"):
        dist.init_process_group("loopback", store=dist.HashStore(), rank=0, world_size=1)
    assert not dist.is_initialized()
