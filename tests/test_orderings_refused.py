"""What a layout would drop in silence is refused by name, and what it puts in order compiles."""

from __future__ import annotations

import re

import pytest
import ringspan as rs
import torch
from ringspan.contracts import BrokenContract, Ordering, Permutation

InvalidArgument = rs.errors.InvalidArgument
HALVES = rs.Documents.from_lengths([40, 24])


@pytest.mark.parametrize("name", ["zigzag", "striped"])
@pytest.mark.parametrize(
    "layout",
    [
        lambda name: rs.Layout(64, 4, name, documents=HALVES),
        lambda name: rs.Layout(64, 4, rs.Along(name, chunk=32)),
    ],
    ids=["documents", "chunk"],
)
def test_what_is_dealt_to_ranks_is_not_dealt_stretch_by_stretch(name: str, layout: object) -> None:
    with pytest.raises(InvalidArgument, match=rf"ordering: .*{name}.*4 ranks") as refusal:
        layout(name).positions(0)  # type: ignore[operator]
    assert "documents" in refusal.value.remedy


def test_a_curve_serves_documents_and_chunks_on_many_ranks() -> None:
    points = rs.Coordinates([[i // 8, i % 8] for i in range(64)])
    for layout in (
        rs.Layout(points, 4, "hilbert", documents=HALVES),
        rs.Layout(points, 4, rs.Along("hilbert", chunk=32)),
    ):
        assert sorted(layout.order.tolist()) == list(range(64))


@pytest.mark.parametrize("documents", [None, rs.Documents.from_lengths([30, 34])])
def test_a_call_has_the_documents_that_its_layout_puts_in_order(
    documents: rs.Documents | None,
) -> None:
    points = rs.Coordinates([[i // 8, i % 8] for i in range(64)])
    layout = rs.Layout(points, ordering="hilbert", documents=HALVES)
    q = torch.randn(1, 64, 2, 4)
    with pytest.raises(InvalidArgument, match=r"documents: .*as the layout has"):
        rs.attention(q, q, q, pattern=rs.Neighborhood(3), layout=layout, documents=documents)
    with pytest.raises(InvalidArgument, match=r"documents: .*as the layout has"):
        rs.explain(rs.Inputs(64, 2, 4), layout=layout, documents=documents)


class _Twice(Ordering):
    name = "twice"

    def __init__(self, *, itself: bool) -> None:
        self.itself = itself

    def probe(self, device: object) -> object:
        raise NotImplementedError

    def places(self, tokens: object, **_: object) -> Permutation:
        order = torch.tensor([0, 2, 1, 2])
        return Permutation.from_tokens(order) if self.itself else Permutation(order, order)


@pytest.mark.parametrize("itself", [True, False], ids=["the plugin", "the library"])
def test_whoever_finds_it_a_permutation_that_is_none_names_its_ordering(
    monkeypatch: pytest.MonkeyPatch, itself: bool
) -> None:
    from ringspan.plan import orders

    class Catalogue:
        def provider(self, kind: str, name: str) -> Ordering:
            return _Twice(itself=itself)

    monkeypatch.setattr(orders, "catalogue", Catalogue)
    expected = f"ordering .twice-{itself}.: .*got 2 at index 3 again, after index 1"
    with pytest.raises(BrokenContract, match=expected):
        rs.Layout(4, ordering=f"twice-{itself}").positions(0)


def test_a_layout_that_was_never_used_compiles_as_one_graph() -> None:
    x = torch.randn(2, 72, 3)

    def there_and_back(layout: rs.Layout, x: torch.Tensor) -> torch.Tensor:
        return layout.restore(layout.arrange(x) * 2)

    compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")
    for name in ("hilbert", "gilbert"):
        assert torch.equal(compiled(rs.Layout(rs.Grid(8, 9), ordering=name), x), x * 2)

    def rows(layout: rs.Layout, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return layout.shard(x, 1), layout.positions(0)

    cold, known = (rs.Layout(rs.Grid(8, 9), 2, "morton") for _ in range(2))
    shard, positions = torch.compile(rows, fullgraph=True, backend="eager")(cold, x)
    assert torch.equal(shard, known.shard(x, 1))
    assert torch.equal(positions, known.positions(0))


def test_arranging_goes_through_function_transforms() -> None:
    x = torch.randn(2, 72, 3)
    layout = rs.Layout(rs.Grid(8, 9), ordering="hilbert")
    mapped = torch.func.vmap(lambda x: layout.arrange(x, dim=0))(x)
    assert torch.equal(mapped, layout.arrange(x))
    grad = torch.func.grad(lambda x: (layout.arrange(x) ** 2).sum())(x)
    assert torch.allclose(grad, 2 * x)


def test_explain_counts_the_blocks_that_a_pattern_chooses_itself() -> None:
    grid, inputs = rs.Grid(128, 128), rs.Inputs(128 * 128, 1, 8)
    found = rs.explain(inputs, pattern=rs.Neighborhood(13), tokens=grid).active_blocks
    assert found is not None
    assert found.own == found.counts["tiles"] == 2116
    assert re.search("2116 in the pattern's own blocks", str(found))
    dense = rs.explain(rs.Inputs(64, 1, 8), tokens=rs.Grid(8, 8)).active_blocks
    assert dense is not None
    assert dense.own is None
