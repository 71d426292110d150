"""Block-sparse work goes whole to a kernel that takes it, and as tiles to all others."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import ringspan as rs
import torch
from hypothesis import assume, given
from ringspan.catalogue import catalogue
from ringspan.contracts import ActiveBlocks, Mask, MaskCase
from ringspan.contracts.errors import KernelFault
from ringspan.plan.orders import order
from ringspan.plan.schedule import make_plan
from ringspan.testing import assert_exact, yardstick
from ringspan.testing.case import Case
from ringspan.testing.strategies import cases
from ringspan.testing.toy import Toy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor


def dense_mask(blocks: ActiveBlocks) -> Tensor:
    """Every pair of the sequence, read from the compressed rows by the letter."""
    bounds, indptr, indices, bitmap, bitmaps = blocks.on(torch.device("cpu"))
    N = int(bounds[-1])
    seen = torch.zeros(N, N, dtype=torch.bool)
    for i in range(len(bounds) - 1):
        for pair in range(int(indptr[i]), int(indptr[i + 1])):
            j = int(indices[pair])
            rows, columns = slice(*bounds[i : i + 2]), slice(*bounds[j : j + 2])
            tile = seen[rows, columns]
            if bitmap[pair] < 0:
                tile |= True
            else:
                tile |= bitmaps[bitmap[pair], : tile.shape[0], : tile.shape[1]]
    return seen


def tile(mask: Mask) -> Mask:
    """Blocks as the bitmap of one tile, which the toy backend knows."""
    assert mask.blocks is not None
    assert mask.case is MaskCase.FULL
    seen = dense_mask(mask.blocks)
    assert int(seen.sum()) == mask.blocks.area
    return replace(mask, case=MaskCase.BITMAP, seen=seen[None, None], blocks=None)


@pytest.fixture
def handed(toy: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Mask]]:
    """Teaches the toy backend to take blocks whole; what it is handed."""
    masks: list[Mask] = []

    def taught(compute: Any) -> Any:
        def run(self: Toy, *tensors: Tensor, mask: Mask, **options: Any) -> Any:
            masks.append(mask)
            return compute(self, *tensors, mask=tile(mask), **options)

        return run

    monkeypatch.setattr(Toy, "capabilities", replace(Toy.capabilities, blocks=True))
    monkeypatch.setattr(Toy, "forward", taught(Toy.forward))
    monkeypatch.setattr(Toy, "backward", taught(Toy.backward))
    catalogue.cache_clear()
    yield masks
    catalogue.cache_clear()


KINDS = (
    "BlockSparse.local",
    "BlockSparse.local_global",
    "BlockSparse.dilated_blocks",
    "BlockSparse.from_blocks",
    "BlockSparse.from_mask",
    "Neighborhood",
)


@given(case=cases(max_N=48, kinds=KINDS, orderings=["identity"]))
def test_any_block_sparse_pattern_goes_whole_in_a_call_per_part(
    handed: list[Mask], case: Case
) -> None:
    # Orderings are plugins, and core's tests run without any.
    fields = {name: x for name, x in case.pattern.fields.items() if name != "along"}
    pattern = replace(case.pattern, fields=fields)
    case = replace(case, pattern=pattern, positions=None, stored=None)
    assume(case.documents is None)
    if case.pattern.kind == "Neighborhood" and not case.grid:
        return  # in one dimension, windows say it
    assume(case.N > 0 and case.batch > 0)
    layout = rs.Layout(case.tokens())
    plan = make_plan(
        pattern.built(rs), causal=case.causal, heads=case.heads, kv_heads=case.kv_heads,
        layout=layout, rank=0,
    )  # fmt: skip
    assume(plan.whole is not None)
    parts = len(plan.whole.tiles)  # type: ignore[union-attr]
    handed.clear()
    q, k, v, grad_out = case.inputs()
    options = case.arguments()
    sink = options.pop("sink", None)
    leaves = [x.requires_grad_() for x in (q, k, v, sink) if x is not None]
    out, lse = rs.attention(
        q, k, v, pattern=case.pattern.built(rs), sink=sink, return_lse=True, **options
    )
    assert list(rs.last_run().decisions) == ["backend (blocks)"]  # type: ignore[union-attr]
    grads = torch.autograd.grad(out, leaves, grad_out)
    assert len(handed) == 2 * parts
    names = ("grad_query", "grad_key", "grad_value", "grad_sink")
    found = {"out": out, "lse": lse, **dict(zip(names, grads, strict=False))}
    assert_exact(
        found,
        yardstick(
            *(x.detach() for x in (q, k, v)),
            case.multiplicity(order),
            scale=case.scale(),
            sink=case.sink_logits(),
            grad_out=grad_out,
            extras=case.extras(),
        ),
    )


def test_what_no_kernel_takes_whole_is_cut_into_tiles_and_explain_says_so(toy: None) -> None:
    report = rs.explain(
        rs.Inputs(N=64, heads=2, head_dim=4), pattern=rs.BlockSparse.local(8, 1, 1), causal=True
    )
    assert not report.decisions["backend (blocks)"].chosen
    assert "block-sparse work as a whole" in str(report)
    assert report.can_run


def test_a_pattern_that_also_has_sets_is_not_whole(handed: list[Mask]) -> None:
    q = torch.randn(1, 16, 2, 4)
    with pytest.raises(KernelFault):
        rs.attention(q, q, q, pattern=rs.Dense())
    assert handed[0].blocks is None
