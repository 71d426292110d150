"""The standard tests of whole branches: rows are read and written where they lie."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ringspan.contracts import AttentionBackend, MaskCase
from ringspan.testing.accuracy import assert_exact
from ringspan.testing.suites.backend import BackendSuite, each_dtype, each_mask
from ringspan.testing.suites.branches import Branches, BranchOperands, Part
from ringspan.testing.suites.provider import steady
from ringspan.testing.suites.rows import HEADS, LAYOUTS
from ringspan.testing.suites.tiles import STRIDES, Tile, wide
from ringspan.testing.suites.trial import DTYPES, Trial, deterministic

__all__ = ["BranchSuite"]

SMALL = ((1, 1), (1, 20), (20, 1), (33, 29))
LARGE = ((1, 1), (1, 320), (320, 1), (257, 130))
MODES: tuple[dict[str, Any], ...] = (
    {"key_padding": True},
    {"dropout_p": 0.3},
    {"group_size": 3, "kv_heads": 2},
    {"sink": "head"},
    {"sink": "row"},
    {"sink": "row", "key_padding": True, "dropout_p": 0.3, "group_size": 2},
    *({"strides": strides} for strides in STRIDES[1:]),
)


class BranchSuite(BackendSuite, published=True):
    """`forward_branch` and `backward_branch`, where they are declared."""

    @pytest.fixture
    def branches(self, tile: Tile) -> Branches:
        """Branches of a head dimension and dtype that the backend serves."""
        D, E = tile.head_dim, tile.value_head_dim
        return Branches(head_dim=D, value_head_dim=E, dtype=tile.dtype)

    @each_mask
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_a_branch_is_exact_where_its_rows_lie_or_refused(
        self, trial: Trial, branches: Branches, layout: str, mask: MaskCase
    ) -> None:
        """Views, dilated views, listed rows, keys of several tiles; other rows stay untouched."""
        _exact_or_refused(trial, replace(branches, parts=(Part(layout, mask=mask),)))

    @each_mask
    @each_dtype
    def test_a_branch_of_every_dtype_is_exact_or_refused(
        self, trial: Trial, branches: Branches, mask: MaskCase, dtype: str
    ) -> None:
        """Gradients of which every row gets one piece are rounded once."""
        _exact_or_refused(trial, replace(branches, parts=(Part(mask=mask),), dtype=dtype))

    @each_mask
    @pytest.mark.parametrize("modes", MODES, ids=str)
    def test_a_branch_has_every_mode(
        self, trial: Trial, branches: Branches, mask: MaskCase, modes: dict[str, Any]
    ) -> None:
        """Padding and dropout by row of the whole tensors, sinks, shared heads, strides."""
        given = replace(branches, parts=(Part(mask=mask),), seed=2, **modes)
        _exact_or_refused(trial, given)

    @each_mask
    @pytest.mark.parametrize("layout", ["dilated", "indexed", "windows"])
    @pytest.mark.parametrize("heads", HEADS)
    def test_some_heads_are_left_alone(
        self, trial: Trial, branches: Branches, layout: str, heads: str, mask: MaskCase
    ) -> None:
        """Every other key/value head, or one query head of each group, as dilated branches have."""
        part = Part(layout, heads, mask=mask, bounds_per_head=False)
        _exact_or_refused(trial, replace(branches, parts=(part,), group_size=2, batch=1))

    @each_mask
    @pytest.mark.parametrize("size", range(len(SMALL)))
    def test_a_branch_of_any_lengths_is_exact_or_refused(
        self, trial: Trial, branches: Branches, mask: MaskCase, size: int
    ) -> None:
        """One row, more queries than keys and fewer; on a GPU longer ones."""
        queries, keys = (SMALL if trial.device.type == "cpu" else LARGE)[size]
        part = Part("whole", query_length=queries, key_length=keys, mask=mask)
        _exact_or_refused(trial, replace(branches, parts=(part,), kv_heads=1))

    @pytest.mark.parametrize("scale", [-0.5, 0.0, 2.0])
    def test_a_branch_of_any_scale_is_exact_or_refused(
        self, trial: Trial, branches: Branches, scale: float
    ) -> None:
        """Also one that is not above zero."""
        _exact_or_refused(trial, replace(branches, scale=scale))

    @each_dtype
    @pytest.mark.parametrize("layout", ["whole", "dilated", "indexed", "windows"])
    def test_branches_add_up(
        self, trial: Trial, branches: Branches, layout: str, dtype: str
    ) -> None:
        """The first one writes its gradients, later ones add; normalisers are those of all."""
        parts = (Part(layout), Part(tiles=3, mask=MaskCase.CAUSAL), Part("windows", key_length=11))
        _exact_or_refused(trial, replace(branches, parts=parts, dtype=dtype))

    @each_mask
    @pytest.mark.parametrize("layout", ["dilated", "indexed"])
    def test_a_branch_without_a_place_to_write_makes_new_tensors(
        self, trial: Trial, branches: Branches, layout: str, mask: MaskCase
    ) -> None:
        """Shaped as those of tiles, and the same numbers as those it would have written."""
        wanted = replace(branches, parts=(Part(layout, mask=mask),), group_size=2, sink="head")
        operands = _operands(trial, wanted)
        if operands is None:
            return
        (branch,) = operands.branches
        new, there = operands.forward(trial.backend, branch), operands.empty()
        operands.forward(trial.backend, branch, there)
        rows = branch.query
        heads, count = len(rows.heads) * rows.group, wanted.batch * rows.tiles
        assert new.out.shape == (count, rows.length, heads, wanted.value_head_dim)
        assert new.lse.shape == (count, heads, rows.length)
        assert (new.out.dtype, new.lse.dtype) == (there.out.dtype, wide(there.out.dtype))
        lse = rows.tile_batch(there.lse.transpose(1, 2)[..., None]).squeeze(-1).transpose(1, 2)
        torch.testing.assert_close(new.out, rows.tile_batch(there.out))
        torch.testing.assert_close(new.lse, lse)
        trial.verdict.served()

    @each_mask
    @pytest.mark.parametrize("layout", ["dilated", "windows", "indexed windows"])
    def test_a_branch_leaves_its_inputs_alone_and_writes_memory_before_it_reads(
        self, trial: Trial, branches: Branches, layout: str, mask: MaskCase
    ) -> None:
        """Nothing that it is given changes but `into` and `grads`; new tensors are full of NaN."""
        operands = _operands(trial, replace(branches, parts=(Part(layout, mask=mask),)))
        if operands is None:
            return
        before, exact = [x.clone() for x in operands.tensors], operands.exact()
        with deterministic(trial.backend, poisoned=True):
            results = operands.results(trial.backend, exact)
        assert all(torch.equal(x, y) for x, y in zip(operands.tensors, before, strict=True))
        assert_exact(results, exact)
        trial.verdict.served()

    @each_mask
    @pytest.mark.parametrize("layout", ["dilated", "windows", "indexed windows"])
    def test_a_branch_that_is_declared_deterministic_repeats_itself_bit_for_bit(
        self, trial: Trial, branches: Branches, layout: str, mask: MaskCase
    ) -> None:
        """Also where gradients of several tiles meet in one key row."""
        part = Part(layout, tiles=4, query_length=15, key_length=15, mask=mask)
        operands = _operands(trial, replace(branches, parts=(part,)), deterministic=True)
        if operands is None:
            return
        exact = operands.exact()
        with deterministic(trial.backend, poisoned=False):
            first, second = (operands.results(trial.backend, exact) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        trial.verdict.served()

    @given(data=st.data())
    @settings(steady, max_examples=30)
    def test_any_branch_is_exact_or_refused(self, trial: Trial, data: st.DataObject) -> None:
        """Everything at once, drawn from what is declared; the same examples every time."""
        if not trial.backend.capabilities.branches:
            trial.verdict.refused(_TILES_ALONE)
            return
        _exact_or_refused(trial, data.draw(_branches(trial.backend)))


_TILES_ALONE = "whole branches (supported: tiles)"


def _operands(
    trial: Trial, branches: Branches, *, deterministic: bool = False
) -> BranchOperands | None:
    """What the engine would call the backend with; None for a refusal, which is recorded."""
    reasons = [
        reason
        for tile in branches.tiles()
        for reason in trial.reasons(tile, deterministic=deterministic)
    ]
    if not trial.backend.capabilities.branches:
        reasons.insert(0, _TILES_ALONE)
    if reasons:
        trial.verdict.refused(*reasons)
        return None
    operands = branches.operands(trial.device)
    return operands if trial.backend.capabilities.strided else operands.contiguous()


def _exact_or_refused(trial: Trial, branches: Branches) -> None:
    operands = _operands(trial, branches)
    if operands is not None:
        exact = operands.exact()
        assert_exact(operands.results(trial.backend, exact), exact)
        trial.verdict.served()


@st.composite
def _branches(draw: st.DrawFn, backend: AttentionBackend) -> Branches:
    declared = backend.capabilities
    dims = [dim for dim in range(1, 97) if dim in declared.head_dims]
    head_dim = draw(st.sampled_from(dims or [declared.head_dims.minimum]))
    other = draw(st.sampled_from(dims or [head_dim]))
    masks = sorted(mask for mask in MaskCase if declared.takes(mask))
    group_size = draw(st.integers(1, 3))
    part = st.builds(
        Part,
        layout=st.sampled_from(sorted(LAYOUTS)),
        heads=st.sampled_from(HEADS if declared.gqa or group_size == 1 else HEADS[2:]),
        tiles=st.integers(1, 3),
        query_length=st.integers(1, 20),
        key_length=st.integers(1, 20),
        mask=st.sampled_from(masks),
        bounds_per_head=st.booleans(),
    )
    parts = draw(st.lists(part, min_size=1, max_size=2))
    return Branches(
        parts=tuple(parts),
        batch=draw(st.integers(1, 2)),
        kv_heads=draw(st.integers(1, 3)),
        group_size=group_size,
        head_dim=head_dim,
        value_head_dim=other if declared.value_head_dim_differs else head_dim,
        dtype=draw(st.sampled_from([dtype for dtype in DTYPES if dtype in declared.dtypes])),
        strides=draw(st.sampled_from(STRIDES)),
        key_padding=declared.key_padding and draw(st.booleans()),
        dropout_p=draw(st.sampled_from((0.0, 0.4))) if declared.dropout else 0.0,
        sink=draw(st.sampled_from(("", "head", "row"))) if len(parts) == 1 else "",
        seed=draw(st.integers(0, 2**31)),
    )
