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


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("documents", {"documents": [4, 4]}),
        ("key_padding", {"key_padding": torch.ones(2, 8, dtype=torch.bool)}),
        ("sink", {"sink": torch.zeros(4)}),
        ("dropout_p", {"dropout_p": 0.1}),
        ("dropout_p", {"dropout_p": np.zeros(2)}),
        ("seed", {"seed": 0}),
        ("query_positions", {"query_positions": torch.arange(8)}),
        ("k", {"k": KV[:, :7], "v": KV[:, :7]}),
    ],
)
def test_what_is_not_computed_yet_is_refused_and_never_dropped(
    argument: str, options: dict[str, Any]
) -> None:
    error = _refused(NotYetSupported, argument, **options)
    assert "in this version" in str(error)


@pytest.mark.parametrize(
    ("argument", "arguments"),
    [
        ("segment_lengths", ((), ())),
        ("segment_lengths", (4, 1)),
        ("segment_lengths[0]", ((0,), (1,))),
        ("segment_lengths[1]", ((4, 2.5), (1, 1))),
        ("segment_lengths[0]", ((True,), (1,))),
        ("dilation_rates[0]", ((4,), (0,))),
        ("dilation_rates[0]", ((4,), (5,))),
        ("dilation_rates", ((4, 8), (1,))),
        ("head_offsets", ((4,), (1,), "random")),
        ("head_offsets", ((4,), (1,), "query")),
        ("head_offsets", ((4,), (1,), (0, 1))),
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


def test_windows_are_refused_until_they_are_supported() -> None:
    with pytest.raises(NotYetSupported, match="window"):
        rs.Dense(window=(4, 0))


def test_lists_are_taken_for_tuples() -> None:
    assert rs.Dilated([4, 8], [1, 2]) == rs.Dilated((4, 8), (1, 2))  # type: ignore[arg-type]


def test_folding_is_only_for_plain_sequences() -> None:
    pattern = rs.Dilated((4,), (1,), along=rs.Along("any", fold=True))
    _refused(InvalidArgument, "along", pattern=pattern, tokens=rs.Grid(2, 4))


def test_an_unknown_setting_lists_the_known_ones() -> None:
    with pytest.raises(RingspanError, match="communicator"), rs.use(bakend="toy"):
        pass


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
