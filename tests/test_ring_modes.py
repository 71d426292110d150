"""Every pattern in every mode on rings of real processes: the formula's numbers, no byte more."""

from __future__ import annotations

import time
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
from torch import Tensor

from tests.front_door import exact

ORDERINGS = ("identity", "zigzag", "striped")
ORDERINGS_OF_GRIDS = (*ORDERINGS, "snake", "hilbert")
Shape = dict[str, Any]


def layout_of(case: Case, shape: Shape) -> rs.Layout:
    return rs.Layout(case.tokens() if case.grid else case.N, **shape)


def attend(rank: int, case: Case, shape: Shape) -> tuple[dict[str, Tensor], int, int]:
    """This rank's outputs and gradients, the bytes it received, and those that its plan says."""
    layout, options = layout_of(case, shape), case.arguments()
    options.pop("tokens", None)
    sink = options.pop("sink", None)
    q, k, v, grad_out = (layout.shard(x, rank) for x in case.inputs())
    leaves = {"grad_query": q, "grad_key": k, "grad_value": v, "grad_sink": sink}
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items() if x is not None}
    q, k, v = (leaves[name] for name in ("grad_query", "grad_key", "grad_value"))
    options |= {"pattern": case.pattern.built(rs), "sink": leaves.get("grad_sink")}
    options |= {"layout": layout, "group": dist.group.WORLD}
    out, lse = rs.attention(q, k, v, return_lse=True, **options)
    run = rs.last_run()
    assert run is not None
    grads = torch.autograd.grad(out, tuple(leaves.values()), grad_out)
    planned = rs.explain(q, k, v, **options).ranks[rank].cost.bytes_received
    found = {"out": out.detach(), "lse": lse.detach(), **dict(zip(leaves, grads, strict=True))}
    return found, run.bytes_received, planned


def joined(layout: rs.Layout, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All ranks' rows in order of position; a sink's gradient is the sum of the ranks' parts."""
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
    m = replace(case, padding=None).multiplicity(order).expand(case.heads, -1, -1) > 0
    seen = m.reshape(case.kv_heads, -1, case.N, case.N)[:, :, layout.positions(rank)]
    wanted = seen.flatten(1, 2).any(dim=1)
    wanted[:, layout.positions(rank)] = False
    size = (case.head_dim + case.value_head_dim) * case.dtype.itemsize
    return case.batch * int(wanted.sum()) * size


@st.composite
def shapes(draw: st.DrawFn, case: Case, world_size: int) -> Shape:
    """Arguments of a layout: even, weighted, or any sizes, empty shards included."""
    orderings = ORDERINGS_OF_GRIDS if case.grid else ORDERINGS
    shape: Shape = {"world_size": world_size, "ordering": draw(st.sampled_from(orderings))}
    kind = draw(st.sampled_from(("even", "weights", "sizes")))
    if kind == "weights":
        shape["weights"] = tuple(float(1 + rank) for rank in range(world_size))
    if kind == "sizes":
        ends = st.lists(st.integers(0, case.N), min_size=world_size - 1, max_size=world_size - 1)
        cuts = sorted(draw(ends))
        shape["sizes"] = tuple(b - a for a, b in zip((0, *cuts), (*cuts, case.N), strict=True))
    return shape


def check(run_ring: Any, case: Case, shape: Shape) -> None:
    layout = layout_of(case, shape)
    answers = run_ring(layout.world_size, attend, case, shape)
    assert_exact(joined(layout, [parts for parts, _, _ in answers]), exact(case))
    for rank, (_, received, planned) in enumerate(answers):
        expected = bytes_by_formula(case, layout, rank)
        assert (received, planned) == (expected, expected)


@pytest.mark.parametrize(("world_size", "examples"), [(2, 100), (3, 60), (4, 40)])
def test_any_call_is_exact_on_a_ring_of_any_layout(
    run_ring: Any, world_size: int, examples: int
) -> None:
    @settings(max_examples=examples)
    @given(cases(max_N=80), st.data())
    def on_a_ring(case: Case, data: st.DataObject) -> None:
        # Queries of their own are for one rank; the layout says how tokens are stored.
        case = replace(case, positions=None, cross=None, stored=None)
        check(run_ring, case, data.draw(shapes(case, world_size)))

    on_a_ring()


EVERYTHING = Case(
    N=45, heads=6, kv_heads=3, head_dim=8, value_head_dim=5, batch=2, documents=(20, 0, 24, 1),
    padding="scattered", sink=1.0, dropout_p=0.3, causal=True, dtype=torch.float64,
    pattern=Named("Dilated", {"segment_lengths": (8, 16), "dilation_rates": (1, 4)}),
)  # fmt: skip


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8])
def test_all_modes_at_once_are_exact_at_any_world_size(run_ring: Any, world_size: int) -> None:
    check(run_ring, EVERYTHING, {"world_size": world_size})


@pytest.mark.parametrize("world_size", [2, 5])
def test_shards_may_be_empty(run_ring: Any, world_size: int) -> None:
    for owner in range(world_size):
        sizes = tuple(45 if rank == owner else 0 for rank in range(world_size))
        check(run_ring, EVERYTHING, {"world_size": world_size, "sizes": sizes})


def test_keys_that_fill_a_bitmap_s_columns_and_do_not_travel_get_no_gradient(run_ring: Any) -> None:
    fields = {"window": (1, 3, 1), "dilation": (1, 2, 1)}
    case = Case(
        N=32, head_dim=8, value_head_dim=1, seed=3, grid=(2, 8, 2),
        pattern=Named("Neighborhood", fields),
    )  # fmt: skip
    shape = {"world_size": 4, "ordering": "hilbert", "weights": (1.0, 2.0, 3.0, 4.0)}
    check(run_ring, case, shape)


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


def three_ways_then_one(rank: int) -> list[str]:
    """All ranks differ; the first sees one of the others and fails. Then all agree."""
    q = torch.ones(1, 8, 2, 4)
    answers = []
    for scale in (1.0 + rank, 0.625):
        if answers:
            dist.barrier()
        if answers and rank == 2:
            time.sleep(0.3)
        try:
            rs.attention(q, q, q, scale=scale, layout=rs.Layout(24, 3), group=dist.group.WORLD)
            answers.append("ran")
        except RanksDisagree as error:
            answers.append(error.argument)
    return answers


def test_what_a_rank_published_in_a_failed_round_is_not_taken_for_its_next(run_ring: Any) -> None:
    assert run_ring(3, three_ways_then_one) == [["scale", "ran"]] * 3
