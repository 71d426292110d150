"""However tokens are stored and whatever curve a pattern follows, results are the same numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.plan.orders import order
from ringspan.testing import assert_exact
from ringspan.testing.case import Case
from ringspan.testing.strategies import ORDERINGS, cases
from torch import Tensor

from tests.front_door import exact
from tests.worlds import Run

KINDS = ("Neighborhood", "BlockSparse.from_mask", "Dilated", "Dense", "Consecutive", "HeadGroups")
DEALING = ("zigzag", "striped")
"""Orderings that serve any tokens, and look at the number of ranks."""
NAMES = ("out", "lse", "grad_query", "grad_key", "grad_value", "grad_sink")
LARGEST_DIFFERENCE = 1e-11


@st.composite
def calls(draw: st.DrawFn, dtype: torch.dtype, ranks: int = 1) -> tuple[Case, dict[str, Any]]:
    """A call, and the arguments of a layout that stores its tokens anyhow."""
    case = draw(cases(max_N=64, kinds=KINDS, dtypes=[dtype], orderings=ORDERINGS))
    # Queries of their own are for tokens in order of position; here the layout says how they lie.
    case = replace(case, positions=None, cross=None, stored=None, largest_score=None)
    fold = not case.grid and draw(st.booleans())
    curves = ORDERINGS if case.grid or fold else ("identity",)
    axes = draw(st.none() | st.permutations(range(len(case.grid) or 2)).map(tuple))
    along = rs.Along(
        draw(st.sampled_from(curves)),
        fold=fold,
        axes=axes if case.grid or fold else None,
        chunk=draw(st.none() | st.integers(1, case.N + 3)),
    )
    dealt = draw(st.integers(0, 3)) == 0
    if dealt:
        along = rs.Along(draw(st.sampled_from(DEALING)))
    shape: dict[str, Any] = {"world_size": ranks, "ordering": along}
    shape["block_size"] = draw(st.sampled_from((1, 4, 16, 64, None)))
    if case.documents is not None and not dealt and draw(st.booleans()):
        shape["documents"] = rs.Documents.from_lengths(case.documents)
    if draw(st.booleans()):
        ends = st.lists(st.integers(0, case.N), min_size=ranks - 1, max_size=ranks - 1)
        cuts = sorted(draw(ends))
        shape["sizes"] = tuple(b - a for a, b in zip((0, *cuts), (*cuts, case.N), strict=True))
    return case, shape


def attended(
    tensors: Any, case: Case, layout: rs.Layout | None, group: Any = None
) -> dict[str, Tensor]:
    """Outputs and gradients of tensors as they are stored."""
    options = case.arguments()
    if layout is not None:
        options.pop("tokens", None)
    q, k, v, grad_out = tensors
    leaves = [x.detach().clone() for x in (q, k, v)]
    leaves += [options.pop("sink")] if "sink" in options else []
    q, k, v, *sink = (leaf.requires_grad_() for leaf in leaves)
    out, lse = rs.attention(
        q, k, v, pattern=case.pattern.built(rs), layout=layout, group=group, return_lse=True,
        sink=sink[0] if sink else None, **options,
    )  # fmt: skip
    grads = torch.autograd.grad(out, leaves, grad_out)
    return dict(zip(NAMES, (out.detach(), lse.detach(), *grads), strict=False))


def of_a_rank(rank: int, case: Case, shape: dict[str, Any]) -> dict[str, Tensor]:
    layout = laid_out(case, shape)
    tensors = [layout.arrange(x).split(layout.sizes, dim=1)[rank] for x in case.inputs()]
    return attended(tensors, case, layout, dist.group.WORLD)


def laid_out(case: Case, shape: dict[str, Any]) -> rs.Layout:
    return rs.Layout(case.tokens() if case.grid else case.N, **shape)


def restored(layout: rs.Layout, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """All ranks' rows in order of position; a sink's gradient is the sum of the ranks' parts."""
    whole = {}
    for name in parts[0]:
        each = [part[name] for part in parts]
        if name == "grad_sink":
            whole[name] = torch.stack(each).sum(0)
        else:
            dim = 2 if name == "lse" else 1
            whole[name] = layout.restore(torch.cat(each, dim), dim=dim)
    return whole


def check_same(found: dict[str, Tensor], case: Case) -> None:
    """As without a layout, but for the order in which float64 adds."""
    expected = attended(case.inputs(), case, None)
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        finite = x.isfinite()
        assert torch.equal(finite, found[name].isfinite())
        assert torch.equal(found[name][~finite], x[~finite])
        scale = max(1.0, float(x[finite].abs().max())) if finite.any() else 1.0
        difference = (found[name][finite] - x[finite]).abs()
        assert (difference <= LARGEST_DIFFERENCE * scale).all(), name


@settings(max_examples=200)
@given(calls(torch.float64))
def test_stored_in_any_order_a_call_gives_the_numbers_that_it_gives_without(
    call: tuple[Case, dict[str, Any]],
) -> None:
    case, shape = call
    layout = laid_out(case, shape)
    found = attended([layout.arrange(x) for x in case.inputs()], case, layout)
    check_same(restored(layout, [found]), case)


@settings(max_examples=80)
@given(st.sampled_from((torch.bfloat16, torch.float32, torch.float64)).flatmap(calls))
def test_stored_in_any_order_a_call_is_exact_by_the_rule_of_accuracy(
    call: tuple[Case, dict[str, Any]],
) -> None:
    case, shape = call
    layout = laid_out(case, shape)
    found = attended([layout.arrange(x) for x in case.inputs()], case, layout)
    assert_exact(restored(layout, [found]), exact(case))


@pytest.mark.parametrize("ranks", [2, 3])
def test_on_a_ring_that_stores_in_any_order_a_call_gives_the_same_numbers(
    run_loopback: Run, ranks: int
) -> None:
    @settings(max_examples=70)
    @given(calls(torch.float64, ranks))
    def on_a_ring(call: tuple[Case, dict[str, Any]]) -> None:
        case, shape = call
        parts = run_loopback(ranks, of_a_rank, case, shape)
        check_same(restored(laid_out(case, shape), parts), case)

    on_a_ring()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("ordering", ORDERINGS)
def test_a_neighbourhood_on_every_curve_sees_its_window(ordering: str, causal: bool) -> None:
    # Wider than high, with sides that are no powers of two.
    grid = rs.Grid(9, 23)
    row, column = torch.tensor(grid.coordinates).T
    near = ((row[:, None] - row).abs() <= 2) & ((column[:, None] - column).abs() <= 3)
    near &= torch.arange(grid.N) <= torch.arange(grid.N)[:, None] if causal else True
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, grid.N, 2, 8, generator=generator, dtype=torch.float64) for _ in range(3)
    )
    expected = torch.nn.functional.scaled_dot_product_attention(
        *(x.transpose(1, 2) for x in (q, k, v)), attn_mask=near
    ).transpose(1, 2)
    pattern = rs.Neighborhood((5, 7))
    for layout in (
        rs.Layout(grid, ordering=ordering),
        rs.Layout(grid, ordering=rs.Along(ordering, axes=(1, 0)), block_size=16),
        rs.Layout(grid, ordering=rs.Along(ordering, chunk=50), block_size=None),
    ):
        stored = [layout.arrange(x) for x in (q, k, v)]
        out = rs.attention(*stored, pattern=pattern, layout=layout, causal=causal)
        assert (layout.restore(out) - expected).abs().max() < LARGEST_DIFFERENCE


def test_layers_may_alternate_between_axes_along_one_storage() -> None:
    generator = torch.Generator().manual_seed(2)
    points = rs.Coordinates.from_mask(torch.rand(12, 12, generator=generator) < 0.7)
    layout = rs.Layout(points, ordering="hilbert")
    x = torch.randn(1, points.N, 2, 8, generator=generator, dtype=torch.float64)
    stored, plain = layout.arrange(x), x
    for axes in (None, (1, 0), None):
        along = rs.Along("hilbert", axes=axes, chunk="segment")
        pattern = rs.Dilated((16, 64), (1, 4), along=along)
        stored = rs.attention(stored, stored, stored, pattern=pattern, layout=layout)
        plain = rs.attention(plain, plain, plain, pattern=pattern, tokens=points)
    assert (layout.restore(stored) - plain).abs().max() < LARGEST_DIFFERENCE


@pytest.mark.parametrize("ordering", ["hilbert", "gilbert"])
def test_a_batch_of_different_slides_is_each_slide_alone(ordering: str) -> None:
    generator = torch.Generator().manual_seed(1)
    slides = [
        rs.Coordinates.from_mask(torch.rand(shape, generator=generator) < 0.6)
        for shape in ((9, 14), (3, 3), (17, 6))
    ]
    points, documents = rs.Coordinates.pack(slides)
    layout = rs.Layout(points, ordering=ordering, documents=documents, block_size=16)
    along = order(ordering, slides[0])
    assert layout.order[: slides[0].N].tolist() == along.tolist()
    x = torch.randn(1, points.N, 2, 8, generator=generator, dtype=torch.float64)
    for pattern in (rs.Neighborhood(5), rs.Dilated((16, 32), (1, 2), along=ordering)):
        stored = layout.arrange(x)
        together = rs.attention(
            stored, stored, stored, pattern=pattern, layout=layout, documents=documents
        )
        alone = torch.cat(
            [
                rs.attention(one, one, one, pattern=pattern, tokens=slide)
                for one, slide in zip(
                    x.split([slide.N for slide in slides], dim=1), slides, strict=True
                )
            ],
            dim=1,
        )
        assert (layout.restore(together) - alone).abs().max() < LARGEST_DIFFERENCE
