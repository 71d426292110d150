"""What is asked of torch's NCCL, in which order. No GPU is needed: torch's part is recorded."""

from __future__ import annotations

import contextlib
import gc
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from ringspan_nccl.carrier import Membership, NcclCarrier
from ringspan_nccl.parcels import Parcel, Ticket

DEVICE = torch.device("cuda", 1)


class Recorded:
    """Stands in for `torch.distributed.ProcessGroupNCCL`."""

    Options = SimpleNamespace
    calls: ClassVar[list[tuple[Any, ...]]] = []

    def __init__(self, *arguments: Any) -> None:
        self.calls.append(("new", *arguments))

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.calls.append((name, *arguments)) or name


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    Recorded.calls.clear()
    monkeypatch.setattr(dist, "ProcessGroupNCCL", Recorded, raising=False)

    @contextlib.contextmanager
    def current(device: torch.device) -> Any:
        Recorded.calls.append(("on", device))
        yield
        Recorded.calls.append(("off", device))

    monkeypatch.setattr(torch.cuda, "device", current)
    return Recorded.calls


def membership() -> Membership:
    store: Any = "store"
    return Membership(1, 3, (4, 6, 5), store, DEVICE, timedelta(seconds=70))


def parcel(direction: Any, peer: int) -> Parcel:
    return Parcel(Ticket(direction, peer, tag=9), torch.empty(4, dtype=torch.uint8))


def test_its_process_group_is_its_own_with_a_stream_of_high_priority(
    calls: list[tuple[Any, ...]],
) -> None:
    carrier = NcclCarrier(membership())
    ((_, store, rank, world_size, options),) = calls
    assert (store, rank, world_size) == ("store", 1, 3)
    assert options == SimpleNamespace(
        is_high_priority_stream=True,
        group_name="ringspan",
        _timeout=timedelta(seconds=70),
        global_ranks_in_group=[4, 6, 5],
    )
    del carrier


def test_a_batch_is_one_group_call_on_its_device(calls: list[tuple[Any, ...]]) -> None:
    carrier = NcclCarrier(membership())
    sent, received = parcel("send", 2), parcel("receive", 0)
    work: Any = carrier.start([sent, received])
    assert work == "_end_coalescing"
    started = [(name, *(each for each in rest[1:])) for name, *rest in calls[1:]]
    assert started == [
        ("on",),
        ("_start_coalescing",),
        ("send", 2, 0),
        ("recv", 0, 0),
        ("_end_coalescing",),
        ("off",),
    ]
    assert [calls[3][1][0], calls[4][1][0]] == [sent.content, received.content]


def test_a_group_call_is_ended_where_a_message_fails(
    calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: Any) -> None:
        raise RuntimeError("ncclInvalidArgument")

    monkeypatch.setattr(Recorded, "send", refuse, raising=False)
    with pytest.raises(RuntimeError, match="ncclInvalidArgument"):
        NcclCarrier(membership()).start([parcel("send", 2)])
    assert ("_end_coalescing",) in calls


def test_it_is_ended_once_when_it_fails_or_is_let_go(calls: list[tuple[Any, ...]]) -> None:
    carrier = NcclCarrier(membership())
    assert ("abort",) not in calls
    carrier.abort()
    carrier.abort()
    del carrier
    gc.collect()
    assert calls.count(("abort",)) == 1
    NcclCarrier(membership())
    gc.collect()
    assert calls.count(("abort",)) == 2
