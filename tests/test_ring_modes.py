"""Rings compute every pattern with every mode as one process does, and move no byte too many."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.errors import InvalidArgument, RanksDisagree
from ringspan.plan.orders import order
from ringspan.testing import assert_exact
from ringspan.testing.case import Case
from ringspan.testing.named import Named
from ringspan.testing.strategies import cases

from tests.front_door import exact

NAMES = ("out", "lse", "grad_query", "grad_key", "grad_value", "grad_sink")


def layout_of(case: Case, world_size: int, ordering: str | None) -> rs.Layout:
    return rs.Layout(case.tokens(), world_size, ordering)


def attend(rank: int, case: Case, world_size: int, ordering: str | None) -> tuple[Any, int]:
    """This rank's outputs and gradients, and the bytes it received in the forward pass."""
    layout = layout_of(case, world_size, ordering)
    options = case.arguments()
    options.pop("tokens", None)
    q, k, v, grad_out = (layout.shard(x, rank) for x in case.inputs())
    sink = options.pop("sink", None)
    leaves = [x.requires_grad_() for x in (q, k, v, sink) if x is not None]
    out, lse = rs.attention(
        q,
        k,
        v,
        pattern=case.pattern.built(rs),
        sink=sink,
        layout=layout,
        group=dist.group.WORLD,
        return_lse=True,
        **options,
    )
    received = rs.last_run().bytes_received  # type: ignore[union-attr]
    grads = torch.autograd.grad(out, leaves, grad_out)
    return dict(zip(NAMES, (out.detach(), lse, *grads), strict=False)), received


def joined(layout: rs.Layout, parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """All ranks' rows in order of position; the sink's gradient summed."""
    positions = torch.cat([layout.positions(rank) for rank in range(layout.world_size)])
    whole = {}
    for name in parts[0]:
        if name == "grad_sink":
            whole[name] = torch.stack([part[name] for part in parts]).sum(0)
            continue
        dim = 2 if name == "lse" else 1
        stored = torch.cat([part[name] for part in parts], dim)
        whole[name] = torch.empty_like(stored).index_copy_(dim, positions, stored)
    return whole


def bytes_by_formula(case: Case, layout: rs.Layout, rank: int) -> int:
    """Rows of others that some query of this rank sees, per key/value head, times their bytes."""
    seen = replace(case, padding=None).multiplicity(order) > 0
    seen = seen.expand(case.heads, -1, -1).unflatten(0, (case.kv_heads, -1)).any(1)
    mine, rows = layout.positions(rank), 0
    for other in range(layout.world_size):
        if other != rank:
            rows += int(seen[:, mine][:, :, layout.positions(other)].any(dim=1).sum())
    both = case.head_dim + case.value_head_dim
    return case.batch * rows * both * case.dtype.itemsize


def check(run_ring: Any, case: Case, world_size: int, ordering: str | None) -> None:
    layout = layout_of(case, world_size, ordering)
    answers = run_ring(world_size, attend, case, world_size, ordering)
    assert_exact(joined(layout, [parts for parts, _ in answers]), exact(case))
    for rank, (_, received) in enumerate(answers):
        assert received == bytes_by_formula(case, layout, rank)


@st.composite
def in_rings(draw: st.DrawFn) -> tuple[Case, str | None]:
    case = draw(cases(max_N=64))
    case = replace(case, cross=None, positions=None, stored=None)
    if case.pattern.kind == "Dense" and case.pattern.fields.get("window") is None:
        case = replace(case, causal=draw(st.booleans()))
    orderings = ("snake", "tiles", "hilbert", "row-major") if case.grid else ("identity",)
    return case, draw(st.sampled_from((None, *orderings)))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@settings(max_examples=60)
@given(drawn=in_rings())
def test_any_pattern_with_any_modes_is_exact_on_a_ring(
    run_ring: Any, world_size: int, drawn: tuple[Case, str | None]
) -> None:
    check(run_ring, drawn[0], world_size, drawn[1])


EVERYTHING = Case(
    N=50,
    pattern=Named("Dilated", {"segment_lengths": (8, 40), "dilation_rates": (1, 4)}),
    heads=4,
    kv_heads=2,
    head_dim=8,
    value_head_dim=5,
    batch=2,
    causal=True,
    documents=(13, 0, 30, 7),
    padding="scattered",
    sink=1.0,
    dropout_p=0.3,
    dtype=torch.float64,
)


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_all_modes_at_once_on_rings_with_more_ranks_than_a_document_has_tokens(
    run_ring: Any, world_size: int
) -> None:
    check(run_ring, EVERYTHING, world_size, None)


def undrawn(rank: int, seed: int | None) -> torch.Tensor:
    torch.manual_seed(rank)
    layout = rs.Layout(24, 3)
    q = layout.shard(torch.ones(1, 24, 2, 4), rank)
    v = layout.shard(torch.arange(24.0).view(1, 24, 1, 1).expand(1, 24, 2, 4), rank)
    return rs.attention(
        q, q, v, layout=layout, group=dist.group.WORLD, dropout_p=0.5, seed=seed, backend="manual"
    )


def test_ranks_whose_generators_differ_draw_one_seed(run_ring: Any) -> None:
    torch.manual_seed(0)
    q = torch.ones(1, 24, 2, 4)
    v = torch.arange(24.0).view(1, 24, 1, 1).expand(1, 24, 2, 4)
    expected = rs.attention(q, q, v, dropout_p=0.5, backend="manual")
    torch.testing.assert_close(torch.cat(run_ring(3, undrawn, None), dim=1), expected)


def disagreeing(rank: int) -> str:
    with pytest.raises(RanksDisagree) as refusal:
        undrawn(rank, rank)
    return refusal.value.argument


def test_ranks_that_pass_different_seeds_are_all_told(run_ring: Any) -> None:
    assert run_ring(3, disagreeing) == ["seed"] * 3


def other_documents(rank: int) -> str:
    layout = rs.Layout(24, 3)
    q = layout.shard(torch.ones(1, 24, 2, 4), rank)
    documents = rs.Documents.from_lengths([10 + rank, 14 - rank])
    with pytest.raises(RanksDisagree) as refusal:
        rs.attention(q, q, q, layout=layout, group=dist.group.WORLD, documents=documents)
    return refusal.value.argument


def test_ranks_that_pass_different_documents_are_all_told(run_ring: Any) -> None:
    assert run_ring(3, other_documents) == ["documents"] * 3


def without_layout(rank: int, name: str) -> str:
    q = torch.ones(1, 8, 2, 4)
    value = {"documents": [0, 24], "key_padding": torch.ones(1, 24, dtype=torch.bool)}[name]
    with pytest.raises(InvalidArgument) as refusal:
        rs.attention(q, q, q, group=dist.group.WORLD, **{name: value})
    return refusal.value.argument


@pytest.mark.parametrize("name", ["documents", "key_padding"])
def test_what_describes_the_global_sequence_wants_a_layout(run_ring: Any, name: str) -> None:
    assert run_ring(3, without_layout, name) == ["layout"] * 3
