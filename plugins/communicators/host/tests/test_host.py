"""The `host` communicator: what it copies, counts and refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.contracts import Communicator, DeviceInfo, InvalidArgument, Link, Message
from ringspan_host import Host, HostSettings, ringspan_communicators

if TYPE_CHECKING:
    from ringspan.contracts import Exchange

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool)


def configured(**section: object) -> Host:
    """A provider as the registry hands it over."""
    host = Host()
    host.section = HostSettings(**section)  # type: ignore[arg-type]
    return host


@pytest.fixture
def exchange() -> Exchange:
    return Host().open(None, CPU)


def message(tensor: torch.Tensor, tag: int) -> Message:
    return Message(0, tensor, tag)


def test_the_plugin_offers_one_virtual_communicator() -> None:
    (offered,) = ringspan_communicators()
    assert isinstance(offered, Communicator)
    assert (offered.name, offered.virtual) == ("host", True)


@pytest.mark.parametrize("kind", ["cpu", "cuda", "abacus"])
def test_it_is_usable_everywhere(kind: str) -> None:
    assert Host().probe(DeviceInfo(type=kind)).usable


def test_only_virtual_ranks_are_served() -> None:
    link = Link("cuda", 4, "cpu:gloo,cuda:nccl")
    (reason,) = Host().reasons_against(link)
    assert str(link) in reason
    assert "virtual ranks of one process" in reason
    assert not list(Host().reasons_against(Link("cuda", 4, virtual=True)))


@given(N=st.integers(0, 10_000), chunk=st.integers(1, 300))
def test_shards_are_as_few_as_hold_a_chunk_each(N: int, chunk: int) -> None:
    shards = configured(chunk=chunk).shards(N)
    assert shards * chunk >= N
    assert shards == 1 or (shards - 1) * chunk < N


def test_shards_hold_65536_tokens_where_nothing_is_configured() -> None:
    assert [Host().shards(N) for N in (0, 65_536, 65_537, 2**20)] == [1, 1, 2, 16]


def test_the_device_is_the_configured_one_or_the_best_there_is() -> None:
    assert configured(device="cuda:1").computes_on() == torch.device("cuda", 1)
    assert Host().computes_on().type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize(
    "section", [{"chunk": 0}, {"device": "the GPU"}, {"chunks": 4}], ids=lambda s: next(iter(s))
)
def test_a_setting_that_makes_no_sense_is_refused(section: dict[str, object]) -> None:
    with pytest.raises(pydantic.ValidationError):
        HostSettings(**section)  # type: ignore[arg-type]


def test_a_process_group_is_refused_by_name() -> None:
    class Group:
        def size(self) -> int:
            return 4

    with pytest.raises(InvalidArgument, match="process group of 4 ranks") as refusal:
        Host().open(Group(), CPU)  # type: ignore[arg-type]
    assert refusal.value.argument == "group"


@given(
    tags=st.lists(st.integers(0, 2**30), unique=True, max_size=6),
    dtype=st.sampled_from(DTYPES),
    rows=st.integers(0, 9),
    data=st.data(),
)
def test_each_send_lands_in_the_receive_of_equal_tag(
    tags: list[int], dtype: torch.dtype, rows: int, data: st.DataObject
) -> None:
    exchange = Host().open(None, CPU)
    sent = {tag: torch.randn(rows, 3).to(dtype) for tag in tags}
    landed = {tag: torch.zeros(rows, 3, dtype=dtype) for tag in tags}
    order = data.draw(st.permutations(tags))
    pending = exchange.post(
        [message(sent[tag], tag) for tag in tags], [message(landed[tag], tag) for tag in order]
    )
    pending.wait()
    pending.wait()
    for tag in tags:
        assert torch.equal(sent[tag], landed[tag])
    assert exchange.bytes_sent == exchange.bytes_received == sum(x.nbytes for x in sent.values())


def test_bytes_are_counted_over_all_calls(exchange: Exchange) -> None:
    for size in (3, 5):
        exchange.post([message(torch.ones(size), 7)], [message(torch.empty(size), 7)]).wait()
    assert exchange.bytes_received == 4 * (3 + 5)


@pytest.mark.parametrize(
    ("sends", "receives", "argument", "words"),
    [
        ([0, 1], [0], "sends and receives", r"one end alone of tags \[1\]"),
        ([], [2], "sends and receives", r"one end alone of tags \[2\]"),
        ([3, 3], [3], "sends[1].tag", "3"),
        ([4], [4, 4], "receives[1].tag", "4"),
    ],
)
def test_tags_that_are_not_in_pairs_are_refused_before_anything_is_copied(
    exchange: Exchange, sends: list[int], receives: list[int], argument: str, words: str
) -> None:
    landed = torch.zeros(2)
    with pytest.raises(InvalidArgument, match=words) as refusal:
        exchange.post(
            [message(torch.ones(2), tag) for tag in sends],
            [message(landed, tag) for tag in receives],
        )
    assert refusal.value.argument == argument
    assert not landed.any()
    assert exchange.bytes_sent == exchange.bytes_received == 0


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (torch.ones(6), "24 sent and 16 received"),
        (torch.ones(4, 2)[:, 0], "a contiguous tensor"),
        (torch.ones(4, device="meta"), "host memory or on cpu"),
    ],
    ids=["of another size", "not contiguous", "elsewhere"],
)
def test_a_tensor_that_cannot_be_copied_is_refused(
    exchange: Exchange, tensor: torch.Tensor, words: str
) -> None:
    first, landed = torch.zeros(4), torch.zeros(4)
    with pytest.raises(InvalidArgument, match=words):
        exchange.post(
            [message(torch.ones(4), 0), message(tensor, 1)], [message(first, 0), message(landed, 1)]
        )
    assert not first.any()
    assert exchange.bytes_received == 0
