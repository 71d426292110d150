"""`explain` says what a call would do, as data, and it is what the call then does."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import ringspan as rs
import torch
from hypothesis import given
from ringspan.errors import InvalidArgument
from ringspan.testing.strategies import Configuration, configurations

pytestmark = pytest.mark.usefixtures("toy")

PATTERN = rs.Dilated((16, 64), (1, 4))


def _described(configuration: Configuration) -> rs.Inputs:
    return rs.Inputs(
        N=configuration.N,
        heads=configuration.heads,
        kv_heads=configuration.kv_heads,
        head_dim=configuration.head_dim,
        value_head_dim=configuration.value_head_dim,
        batch=configuration.batch,
        dtype=str(configuration.dtype).removeprefix("torch."),
    )


@given(configurations(max_N=80))
def test_operations_and_bytes_are_those_of_the_formula(configuration: Configuration) -> None:
    pattern = rs.Dilated(
        configuration.segment_lengths,
        configuration.dilation_rates,
        head_offsets=configuration.head_offsets,
    )
    layout = rs.Layout(configuration.N, 3)
    report = rs.explain(
        _described(configuration), pattern=pattern, causal=configuration.causal, layout=layout
    )
    both = configuration.head_dim + configuration.value_head_dim
    multiplicity = configuration.multiplicity()
    assert report.flops == 2 * configuration.batch * both * int(multiplicity.sum())
    group = configuration.heads // configuration.kv_heads
    seen = multiplicity[::group] > 0
    for rank in report.ranks:
        mine = layout.positions(rank.rank)
        rows = sum(
            int(seen[:, mine][:, :, layout.positions(other)].any(dim=1).sum())
            for other in range(3)
            if other != rank.rank
        )
        size = configuration.batch * both * configuration.dtype.itemsize
        assert rank.cost.bytes_received == rows * size
    assert sum(r.cost.bytes_sent for r in report.ranks) == sum(
        r.cost.bytes_received for r in report.ranks
    )


def test_an_explanation_is_json_and_readable() -> None:
    report = rs.explain(rs.Inputs(N=64, heads=4, head_dim=8), pattern=PATTERN, causal=True)
    data = json.loads(json.dumps(report.as_dict()))
    assert data["decisions"]["backend (causal)"]["chosen"] == "toy"
    assert data["ranks"][0]["steps"][0]["launches"]
    text = str(report)
    for part in ("Dilated", "causal", "64 tokens", "rank 0", "toy"):
        assert part in text


def test_the_same_arguments_give_the_same_decision_as_the_call() -> None:
    q, k, v = (torch.randn(1, 64, 4, 8, requires_grad=True) for _ in range(3))
    report = rs.explain(q, k, v, pattern=PATTERN, causal=True)
    rs.attention(q, k, v, pattern=PATTERN, causal=True)
    assert rs.last_run().decisions == report.decisions  # type: ignore[union-attr]


def test_a_refusal_is_explained_and_not_raised() -> None:
    described = rs.Inputs(N=64, heads=4, head_dim=8, device="meta")
    report = rs.explain(described, pattern=PATTERN, backend="toy")
    decision = report.decisions["backend (full)"]
    assert not decision.chosen
    assert any("meta" in reason for c in decision.candidates for reason in c.reasons)


def test_a_device_that_this_machine_lacks_can_be_asked_about() -> None:
    missing = "xpu:7" if not torch.xpu.is_available() else "cuda:99"
    described = rs.Inputs(N=64, heads=4, head_dim=8, device=missing)
    decision = rs.explain(described, pattern=PATTERN, backend="toy").decisions["backend (full)"]
    assert not decision.chosen


def test_every_rank_of_a_described_ring_is_explained_without_a_group() -> None:
    described = rs.Inputs(N=64, heads=4, head_dim=8)
    report = rs.explain(described, pattern=PATTERN, layout=rs.Layout(64, 4))
    assert [rank.rank for rank in report.ranks] == [0, 1, 2, 3]
    assert [len(rank.steps) for rank in report.ranks] == [4] * 4
    assert any(mask.startswith("backend") for mask in report.decisions)


def test_one_million_tokens_on_eight_ranks_move_a_tenth_of_dense() -> None:
    lengths = tuple(2048 * 2**i for i in range(10))
    rates = (1, 2, 4, 8, 16, 16, 16, 16, 16, 16)
    described = rs.Inputs(N=2**20, heads=16, head_dim=64, dtype="bfloat16")
    layout = rs.Layout(2**20, 8)
    report = rs.explain(described, pattern=rs.Dilated(lengths, rates), layout=layout)
    dense = 7 / 8 * 2**20 * 16 * 128 * 2
    assert all(rank.cost.bytes_received <= 0.11 * dense for rank in report.ranks)


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ({"device": torch.device("cuda", 1)}, {"device": "cuda:1"}),
        ({"device": torch.device("cpu")}, {"device": "cpu"}),
        ({"dtype": torch.bfloat16}, {"dtype": "bfloat16"}),
        ({}, {"kv_heads": 2, "value_head_dim": 4}),
        ({"kv_heads": 1, "value_head_dim": 3}, {"kv_heads": 1, "value_head_dim": 3}),
    ],
)
def test_described_inputs_are_stored_as_plain_data(
    given: dict[str, Any], stored: dict[str, object]
) -> None:
    inputs = dataclasses.asdict(rs.Inputs(N=8, heads=2, head_dim=4, **given))
    assert json.loads(json.dumps(inputs)) == inputs
    assert inputs.items() >= stored.items()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("N", 8.0),
        ("heads", "2"),
        ("head_dim", None),
        ("kv_heads", 0),
        ("kv_heads", False),
        ("value_head_dim", 0),
        ("value_head_dim", True),
        ("batch", -1),
        ("dtype", torch.int8),
        ("dtype", "bf16"),
        ("dtype", 3),
        ("dtype", []),
        ("device", 3.5),
        ("device", None),
        ("device", "warp"),
        ("device", "cuda:x"),
        ("needs_backward", "no"),
        ("needs_backward", None),
    ],
)
def test_described_inputs_of_another_kind_are_refused_by_name(argument: str, value: object) -> None:
    described: dict[str, Any] = {"N": 8, "heads": 2, "head_dim": 4} | {argument: value}
    with pytest.raises(InvalidArgument) as refusal:
        rs.Inputs(**described)
    assert refusal.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("k", (rs.Inputs(N=8, heads=2, head_dim=4), torch.zeros(1)), {}),
        ("k", (torch.zeros(1, 8, 2, 4),), {}),
        ("layout", (rs.Inputs(N=8, heads=2, head_dim=4),), {"layout": rs.Layout(9)}),
        ("tokens", (rs.Inputs(N=8, heads=2, head_dim=4),), {"tokens": rs.Grid(3, 3)}),
        ("pattern", (rs.Inputs(N=8, heads=2, head_dim=4),), {"pattern": 3}),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    argument: str, arguments: tuple[object, ...], options: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        rs.explain(*arguments, **options)  # type: ignore[arg-type]
    assert refusal.value.argument == argument


def test_a_described_ring_gets_the_default_layout_with_its_reason() -> None:
    inputs = rs.Inputs(N=4096, heads=4, head_dim=8, kv_heads=2)
    causal = rs.explain(inputs, causal=True, world_size=4)
    assert causal.layout == repr(rs.parallel.choose_layout(4096, 4, causal=True))
    assert causal.layout_reason in str(causal)
    assert rs.explain(inputs, world_size=4).layout == repr(rs.Layout(4096, 4))
    with pytest.raises(InvalidArgument, match="world_size"):
        rs.explain(inputs, layout=rs.Layout(4096, 4), world_size=4)
    q = torch.zeros(1, 4, 1, 2)
    with pytest.raises(InvalidArgument, match="world_size"):
        rs.explain(q, q, q, world_size=2)
