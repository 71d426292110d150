"""Bad input is refused before any work, by an error that names the argument."""

from __future__ import annotations

import enum
from typing import Any

import numpy as np
import pytest
import ringspan as rs
import torch
from ringspan.errors import InvalidArgument, NotYetSupported, RingspanError

pytestmark = pytest.mark.usefixtures("toy")

Q = torch.randn(2, 8, 4, 6)
KV = torch.randn(2, 8, 2, 6)


def _refused(error: type[RingspanError], argument: str, **options: Any) -> RingspanError:
    inputs = {"q": Q, "k": KV, "v": KV} | {n: options.pop(n) for n in "qkv" if n in options}
    with pytest.raises(error) as refusal:
        rs.attention(*inputs.values(), **options)
    assert refusal.value.argument == argument
    assert refusal.value.expected
    assert refusal.value.got
    assert argument in str(refusal.value)
    return refusal.value


@pytest.mark.parametrize(
    ("argument", "inputs"),
    [
        ("q", {"q": "text"}),
        ("q", {"q": Q[0]}),
        ("k", {"k": KV[..., None]}),
        ("k", {"k": KV[:1]}),
        ("k", {"k": KV[..., :5]}),
        ("v", {"v": KV[:, :, :1]}),
        ("v", {"v": KV[:1]}),
        ("q", {"q": Q[:, :, :3]}),
        ("q", {"q": Q[:, :, :0]}),
        ("q", {"k": KV[:, :, :0], "v": KV[:, :, :0]}),
        ("q.dtype", {"q": Q.long()}),
        ("k.dtype", {"k": KV.double()}),
        ("v.dtype", {"v": KV.half()}),
        ("k.device", {"k": KV.to("meta")}),
        ("q", {"q": Q[..., :0], "k": KV[..., :0]}),
        ("v", {"v": KV[..., :0]}),
    ],
)
def test_tensors_that_do_not_fit_are_refused(argument: str, inputs: dict[str, Any]) -> None:
    _refused(InvalidArgument, argument, **inputs)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("pattern", {"pattern": "dense"}),
        ("causal", {"causal": 1}),
        ("scale", {"scale": float("nan")}),
        ("scale", {"scale": "1"}),
        ("scale", {"scale": 10**400}),
        ("scale", {"scale": True}),
        ("tokens", {"tokens": 8}),
        ("tokens", {"tokens": rs.Grid(3, 3)}),
        ("layout", {"layout": 8}),
        ("q", {"layout": rs.Layout(9)}),
        ("group", {"layout": rs.Layout(16, 2)}),
        ("group", {"group": "world"}),
        ("tokens", {"layout": rs.Layout(rs.Grid(2, 4)), "tokens": rs.Grid(4, 2)}),
        ("backend", {"backend": 3}),
        ("backend", {"backend": [1]}),
        ("communicator", {"communicator": 3}),
    ],
)
def test_options_that_do_not_fit_are_refused(argument: str, options: dict[str, Any]) -> None:
    _refused(InvalidArgument, argument, **options)


PADDING = torch.ones(2, 8, dtype=torch.bool)
ROWS = torch.arange(4)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("documents", {"documents": rs.Documents.from_lengths([4, 5])}),
        ("documents", {"documents": [0, 4, 7]}),
        ("cu_seqlens", {"documents": [4, 8]}),
        ("cu_seqlens", {"documents": [0, 6, 4, 8]}),
        ("cu_seqlens", {"documents": "4, 4"}),
        ("cu_seqlens", {"documents": torch.tensor([0.0, 8.0])}),
        ("tokens", {"documents": [0, 4, 8], "tokens": rs.Grid(2, 4)}),
        ("key_padding", {"key_padding": PADDING.long()}),
        ("key_padding", {"key_padding": PADDING[:, :7]}),
        ("key_padding", {"key_padding": PADDING[:1]}),
        ("key_padding", {"key_padding": PADDING.to("meta")}),
        ("key_padding", {"key_padding": True}),
        ("sink", {"sink": torch.zeros(2)}),
        ("sink", {"sink": torch.zeros(4, dtype=torch.int64)}),
        ("sink", {"sink": 0.0}),
        ("dropout_p", {"dropout_p": 1.0}),
        ("dropout_p", {"dropout_p": -0.1}),
        ("dropout_p", {"dropout_p": np.zeros(2)}),
        ("seed", {"seed": -1}),
        ("seed", {"seed": 0.5}),
        ("query_positions", {"query_positions": ROWS}),
        ("query_positions", {"query_positions": ROWS.float(), "q": Q[:, :4]}),
        ("query_positions", {"query_positions": "0123", "q": Q[:, :4]}),
        ("query_positions", {"query_positions": [0, 1, 2, -1], "q": Q[:, :4]}),
        ("query_positions", {"q": Q[:, :4], "causal": True}),
        ("query_positions", {"q": Q[:, :4], "pattern": rs.Dense(window=(2, 2))}),
        ("q", {"q": Q[:, :4], "pattern": rs.Dilated((4,), (1,))}),
        (
            "query_positions",
            {"q": Q[:, :4], "pattern": rs.Dilated((4,), (1,)), "query_positions": [5, 6, 7, 8]},
        ),
        (
            "query_positions",
            {"q": Q[:, :4], "pattern": rs.Dilated((4,), (1,)), "query_positions": [5, 6, 7, 7]},
        ),
    ],
)
def test_modes_that_do_not_fit_are_refused(argument: str, options: dict[str, Any]) -> None:
    _refused(InvalidArgument, argument, **options)


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("softcap", {"softcap": 30.0}),
        ("bias", {"bias": torch.zeros(8, 8)}),
        ("alibi_slopes", {"alibi_slopes": torch.zeros(4)}),
        ("attn_mask", {"attn_mask": None}),
        ("layout", {"q": Q[:, :4], "layout": rs.Layout(8)}),
        ("documents", {"q": Q[:, :4], "documents": [0, 8]}),
        ("documents", {"query_positions": range(8), "documents": [0, 8]}),
        (
            "key_padding",
            {"pattern": rs.Dilated.torchscale((4,), (1,)), "key_padding": PADDING},
        ),
    ],
)
def test_what_a_combination_cannot_do_is_refused_by_name(
    argument: str, options: dict[str, Any]
) -> None:
    _refused(NotYetSupported, argument, **options)


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("segment_lengths", ((), ())),
        ("segment_lengths", (4, 1)),
        ("segment_lengths[0]", ((0,), (1,))),
        ("segment_lengths[1]", ((4, 2.5), (1, 1))),
        ("segment_lengths[0]", ((True,), (1,))),
        ("dilation_rates[0]", ((4,), (0,))),
        ("dilation_rates", ((4, 8), (1,))),
        ("head_offsets", ((4,), (1,), "random")),
        ("head_offsets[1]", ((4,), (1,), (0, -1))),
        ("along", ((4,), (1,), "modulo", 3)),
    ],
)
def test_a_dilated_pattern_that_makes_no_sense_is_refused(
    argument: str, arguments: tuple[Any, ...]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        rs.Dilated(*arguments)
    assert refusal.value.argument == argument


def test_numbers_and_names_of_other_libraries_are_taken_for_what_they_are() -> None:
    class Names(enum.StrEnum):
        TOY = "toy"

    class Lengths(enum.IntEnum):
        SHORT = 4

    pattern = rs.Dilated((Lengths.SHORT,), (1,))
    expected = rs.attention(Q, KV, KV, pattern=rs.Dilated((4,), (1,)), scale=0.5)
    out = rs.attention(Q, KV, KV, pattern=pattern, scale=np.float64(0.5), backend=Names.TOY)
    assert torch.equal(out, expected)


def test_lists_are_taken_for_tuples() -> None:
    assert rs.Dilated([4, 8], [1, 2]) == rs.Dilated((4, 8), (1, 2))  # type: ignore[arg-type]


def test_folding_is_only_for_plain_sequences() -> None:
    pattern = rs.Dilated((4,), (1,), along=rs.Along("any", fold=True))
    _refused(InvalidArgument, "along", pattern=pattern, tokens=rs.Grid(2, 4))


def test_an_unknown_setting_lists_the_known_ones() -> None:
    with pytest.raises(RingspanError, match="communicator"), rs.use(bakend="toy"):
        pass


def test_an_option_that_nobody_knows_is_refused_as_python_does() -> None:
    with pytest.raises(TypeError, match="patern"):
        rs.attention(Q, KV, KV, patern=rs.Dense())


def test_nothing_is_chosen_for_arguments_that_are_refused() -> None:
    before = rs.last_run()
    _refused(InvalidArgument, "causal", causal=None)
    assert rs.last_run() is before


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("N", {"N": -1}),
        ("heads", {"heads": 0}),
        ("heads", {"heads": 3, "kv_heads": 2}),
        ("dtype", {"dtype": "int8"}),
        ("device", {"device": "abacus"}),
        ("head_dim", {"head_dim": 0}),
        ("batch", {"batch": -1}),
    ],
)
def test_a_described_problem_that_makes_no_sense_is_refused(
    argument: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        rs.Inputs(**({"N": 8, "heads": 2, "head_dim": 4} | options))
    assert refusal.value.argument == argument
