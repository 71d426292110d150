"""The front door computes the formula, and its gradients, on a backend of a few lines."""

from __future__ import annotations

import gc
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pytest
import ringspan as rs
import torch
from hypothesis import given
from ringspan.contracts import (
    Blocks,
    Cliques,
    Domain,
    Listed,
    Part,
    Pattern,
    Runs,
    Windows,
)
from ringspan.errors import BrokenContract, InvalidArgument
from ringspan.testing import assert_exact, reference, yardstick
from ringspan.testing.multiplicity import dense
from ringspan.testing.strategies import Configuration, configurations

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.usefixtures("toy")


def _computed(configuration: Configuration, **options: object) -> dict[str, torch.Tensor]:
    q, k, v, grad_out = configuration.inputs()
    for x in (q, k, v):
        x.requires_grad_()
    pattern = rs.Dilated(
        configuration.segment_lengths,
        configuration.dilation_rates,
        head_offsets=configuration.head_offsets,
    )
    out, lse = rs.attention(
        q, k, v, pattern=pattern, causal=configuration.causal, return_lse=True, **options
    )
    grads = torch.autograd.grad(out, (q, k, v), grad_out)
    names = ("grad_query", "grad_key", "grad_value")
    return {"out": out, "lse": lse, **dict(zip(names, grads, strict=True))}


@given(configurations(max_N=160))
def test_dilated_attention_is_the_formula(configuration: Configuration) -> None:
    q, k, v, grad_out = configuration.inputs()
    exact = yardstick(q, k, v, configuration.multiplicity(), grad_out=grad_out)
    assert_exact(_computed(configuration), exact)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_attention_is_torch_s_own(causal: bool) -> None:
    q, k, v = torch.randn(3, 2, 33, 4, 8, dtype=torch.float64).unbind()
    out = rs.attention(q, k, v, causal=causal)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), is_causal=causal
    ).transpose(1, 2)
    torch.testing.assert_close(out, theirs)


def test_a_given_scale_is_used() -> None:
    q, k, v = torch.randn(3, 1, 9, 2, 4, dtype=torch.float64).unbind()
    out = rs.attention(q, k, v, scale=0.25)
    expected = reference(q, k, v, dense(9), scale=0.25).out
    torch.testing.assert_close(out, expected)


def test_rows_that_see_no_key_are_zero_with_an_lse_of_minus_infinity() -> None:
    # Rate 4 with one head keeps only every fourth token.
    q, k, v = (torch.randn(1, 8, 1, 4, requires_grad=True) for _ in range(3))
    out, lse = rs.attention(q, k, v, pattern=rs.Dilated((8,), (4,)), return_lse=True)
    unseen = torch.arange(8) % 4 != 0
    assert (out[0, unseen] == 0).all()
    assert (lse[0, 0, unseen] == -torch.inf).all()
    for grad in torch.autograd.grad(out, (q, k, v), torch.randn_like(out)):
        assert (grad[0, unseen] == 0).all()
        assert grad.isfinite().all()


@pytest.mark.parametrize("shape", [(0, 8), (2, 0), (0, 0)])
def test_no_batch_or_no_tokens_give_empty_tensors(shape: tuple[int, int]) -> None:
    q = torch.randn(*shape, 4, 8, requires_grad=True)
    k = torch.randn(*shape, 2, 8, requires_grad=True)
    v = torch.randn(*shape, 2, 5, requires_grad=True)
    out, lse = rs.attention(q, k, v, pattern=rs.Dilated((4,), (2,)), causal=True, return_lse=True)
    assert out.shape == (*shape, 4, 5)
    assert lse.shape == (shape[0], 4, shape[1])
    grads = torch.autograd.grad(out.sum(), (q, k, v))
    assert [grad.shape for grad in grads] == [x.shape for x in (q, k, v)]


def test_strides_of_the_inputs_do_not_matter() -> None:
    packed = torch.randn(2, 30, 4, 3, 8, dtype=torch.float64)
    q, k, v = packed.unbind(3)
    swapped = packed.transpose(0, 1).contiguous().transpose(0, 1)
    last = packed.movedim(-1, 0).contiguous().movedim(0, -1)
    pattern = rs.Dilated((7, 15), (2, 3))
    expected = rs.attention(*(x.contiguous() for x in (q, k, v)), pattern=pattern)
    for inputs in (packed, swapped, last):
        assert torch.equal(rs.attention(*inputs.unbind(3), pattern=pattern), expected)


def test_an_expanded_head_is_read_without_copies_and_gets_its_gradient() -> None:
    q = torch.randn(1, 12, 4, 8, dtype=torch.float64)
    shared = torch.randn(1, 12, 1, 8, dtype=torch.float64, requires_grad=True)
    pattern = rs.Dilated((6,), (1,))
    wide = rs.attention(
        q, shared.expand(-1, -1, 4, -1), shared.expand(-1, -1, 4, -1), pattern=pattern
    )
    grouped = rs.attention(q, shared, shared, pattern=pattern)
    torch.testing.assert_close(wide, grouped)
    upstream = torch.randn_like(wide)
    torch.testing.assert_close(
        *(torch.autograd.grad(out, shared, upstream)[0] for out in (wide, grouped))
    )


def test_outputs_and_gradients_are_contiguous() -> None:
    q, k, v = (torch.randn(2, 20, 4, 8, requires_grad=True) for _ in range(3))
    out = rs.attention(q, k, v, pattern=rs.Dilated((10,), (1,)))
    assert out.is_contiguous()
    assert all(g.is_contiguous() for g in torch.autograd.grad(out, (q, k, v), out.detach()))


def test_inputs_are_never_changed() -> None:
    q, k, v = (torch.randn(1, 20, 4, 8, requires_grad=True) for _ in range(3))
    before = [x.detach().clone() for x in (q, k, v)]
    upstream = torch.randn(1, 20, 4, 8)
    kept = upstream.clone()
    rs.attention(q, k, v, pattern=rs.Dilated((5, 20), (1, 4))).backward(upstream)
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), before, strict=True))
    assert torch.equal(upstream, kept)


def test_memory_that_holds_nan_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    empty = torch.empty

    def poisoned(*args: object, **options: object) -> torch.Tensor:
        tensor = empty(*args, **options)  # type: ignore[call-overload]
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)
    configuration = Configuration(
        N=21, segment_lengths=(4, 9), dilation_rates=(3, 5), heads=4, kv_heads=2, head_dim=8,
        value_head_dim=5, causal=True,
    )  # fmt: skip
    assert all(not x.isnan().any() for x in _computed(configuration).values())


@dataclass(frozen=True)
class EvenAndOdd(Pattern):
    """A third party's pattern: even positions see each other, and so do odd ones."""

    def parts(self, domain: Domain) -> Iterable[Part]:
        everyone = np.arange(domain.N)
        rows = np.concatenate([everyone[::2], everyone[1::2]])
        lengths = np.array([len(everyone[::2]), len(everyone[1::2])])
        yield Cliques(tuple(range(domain.heads)), Listed.of(rows, lengths))


@dataclass(frozen=True, kw_only=True)
class Strange(Pattern):
    """A third party's pattern that breaks one promise."""

    fault: str

    def parts(self, domain: Domain) -> Iterable[Part]:
        N, heads = domain.N, tuple(range(domain.heads))
        sets = Runs(np.array([0, 4]), np.array([4, N - 4]))
        rows = np.arange(N)
        zero, end = np.zeros(N, np.int64), np.repeat([4, N - 4], [4, N - 4])
        everyone = np.array([0, 2, 4]), np.array([0, 1, 0, 1])
        yield {
            "overlap": Cliques(heads, Runs(np.array([0, 3]), np.array([4, 4]))),
            "tokens": Cliques(heads, Runs(np.array([N - 1]), np.array([2]))),
            "heads": Cliques((0, domain.heads), sets),
            "heads twice": Cliques((0, 0), sets),
            "kind": sets,
            "windows outside": Windows(heads, sets, zero, end + 1),
            "windows descend": Windows(heads, sets, zero, np.maximum(end - rows, 0)),
            "few windows": Windows(heads, sets, zero[1:], end[1:]),
            "blocks outside": Blocks(heads, sets, everyone[0], everyone[1] + 1),
            "blocks twice": Blocks(heads, sets, everyone[0], np.array([0, 0, 0, 1])),
            "short rows": Blocks(heads, sets, everyone[0][:2], everyone[1]),
        }[self.fault]  # type: ignore[misc]


@pytest.mark.parametrize(
    "fault",
    [
        *("overlap", "tokens", "heads", "heads twice", "kind", "windows outside"),
        *("windows descend", "few windows", "blocks outside", "blocks twice", "short rows"),
    ],
)
def test_a_pattern_that_breaks_its_contract_is_refused_by_name(fault: str) -> None:
    q = torch.randn(1, 11, 2, 4)
    with pytest.raises(BrokenContract, match="Strange"):
        rs.attention(q, q, q, pattern=Strange(fault=fault))


@dataclass(frozen=True, kw_only=True)
class Pairs(Pattern):
    """Neighbours see each other, in sets of `width`."""

    width: int = 2

    def parts(self, domain: Domain) -> Iterable[Part]:
        yield Cliques(tuple(range(domain.heads)), Runs(*domain.segments(self.width)))


def test_fields_that_are_given_by_keyword_count() -> None:
    q = torch.randn(1, 12, 2, 4, dtype=torch.float64)
    expected = rs.attention(q, q, q, pattern=rs.Dilated((6,), (1,)))
    torch.testing.assert_close(rs.attention(q, q, q, pattern=Pairs(width=6)), expected)


@pytest.mark.parametrize("field", [float("inf"), np.int64(3), [1], torch.ones(2)])
def test_fields_that_no_text_can_hold_are_refused_by_name(field: object) -> None:
    with pytest.raises(InvalidArgument, match="width"):
        Pairs(width=field)  # type: ignore[arg-type]


def test_a_pattern_defined_in_a_function_is_refused_by_name() -> None:
    @dataclass(frozen=True)
    class Local(Pairs):
        pass

    with pytest.raises(InvalidArgument, match="Local"):
        Local()


def test_what_is_built_in_inference_mode_serves_training() -> None:
    with torch.inference_mode():
        documents = rs.Documents.from_lengths([5, 7])
    q = torch.randn(1, 12, 2, 4, requires_grad=True)
    rs.attention(q, q, q, documents=documents).sum().backward()


def test_no_keys_with_positions_and_padding_give_empty_rows() -> None:
    none = torch.zeros(1, 0, 2, 4)
    padding = torch.zeros(1, 0, dtype=torch.bool)
    q = torch.randn(1, 3, 2, 4)
    out = rs.attention(q, none, none, query_positions=range(3), key_padding=padding)
    assert torch.equal(out, torch.zeros_like(out))


def test_a_graph_keeps_the_data_of_patterns_that_nobody_else_holds() -> None:
    q = torch.randn(1, 16, 2, 4, requires_grad=True)
    outs = [
        rs.attention(
            q, q, q, pattern=rs.BlockSparse.from_blocks(4, lambda i, j: abs(i - j) != 1, 16)
        )
        for _ in range(300)
    ]
    gc.collect()
    sum(out.sum() for out in outs).backward()  # type: ignore[union-attr]


def test_a_pattern_may_be_written_by_anyone() -> None:
    q, k, v = torch.randn(3, 1, 11, 2, 4, dtype=torch.float64).unbind()
    parity = torch.arange(11) % 2
    multiplicity = (parity[:, None] == parity).long()[None]
    out = rs.attention(q, k, v, pattern=EvenAndOdd())
    torch.testing.assert_close(out, reference(q, k, v, multiplicity).out)


def test_heads_of_a_group_share_their_key_value_head() -> None:
    configuration = Configuration(
        N=17, segment_lengths=(5, 17), dilation_rates=(2, 3), heads=6, kv_heads=2, head_dim=4,
        value_head_dim=4, dtype=torch.float64,
    )  # fmt: skip
    q, k, v, grad_out = configuration.inputs()
    exact = yardstick(q, k, v, configuration.multiplicity(), grad_out=grad_out)
    assert_exact(_computed(configuration), exact)


def test_what_ran_can_be_read_back() -> None:
    q = torch.randn(1, 8, 2, 4)
    rs.attention(q, q, q, causal=True)
    record = rs.last_run()
    assert record is not None
    assert record.decisions["backend (causal)"].chosen == "toy"
    assert (record.rank, record.world_size, record.bytes_received) == (0, 1, 0)


@pytest.mark.parametrize("causal", [False, True])
def test_padded_rows_may_hold_anything(causal: bool) -> None:
    real = torch.rand(2, 19, generator=torch.Generator().manual_seed(0)) > 0.4
    clean = torch.randn(4, 2, 19, 2, 4, dtype=torch.float64)
    clean.masked_fill_(~real[None, :, :, None, None], 0.0)
    dirty = clean.masked_fill(~real[None, :, :, None, None], torch.nan)
    found = []
    for q, k, v, grad_out in (clean, dirty):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out = rs.attention(
            *leaves, pattern=rs.Dilated((4, 19), (1, 3)), causal=causal, key_padding=real
        )
        found.append((out, *torch.autograd.grad(out, leaves, grad_out)))
    for expected, actual in zip(*found, strict=True):
        assert torch.equal(expected, actual)
