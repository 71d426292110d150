"""The standard tests of moving rows: gathering them for kernels, and merging what kernels made."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

from ringspan.contracts import MaskCase, Problem, Task
from ringspan.contracts.branch import Placed
from ringspan.testing.suites.backend import BackendSuite, each_dtype
from ringspan.testing.suites.devices import torch_device
from ringspan.testing.suites.pieces import Merging
from ringspan.testing.suites.rows import LAYOUTS, heads_of, place
from ringspan.testing.suites.tiles import STRIDES, Tile, strided
from ringspan.testing.suites.trial import Trial

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["MoveSuite"]


class MoveSuite(BackendSuite, published=True):
    """`gather` and `merge`, where these tasks are declared."""

    @each_dtype
    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_rows_of_several_tensors_are_gathered_bit_for_bit_or_refused(
        self, trial: Trial, tile: Tile, layout: str, dtype: str
    ) -> None:
        """Contiguous, in the order of the selection."""
        if not _asked(trial, replace(tile, dtype=dtype), Task.GATHER):
            return
        placed = _placed(trial, layout, getattr(torch, dtype), "contiguous", tile.head_dim)
        _same_rows(trial, placed)

    @pytest.mark.parametrize("strides", STRIDES)
    @pytest.mark.parametrize("width", [1, 3, 64])
    @pytest.mark.parametrize("layout", ["dilated", "indexed"])
    def test_rows_of_any_width_and_strides_are_gathered(
        self, trial: Trial, tile: Tile, layout: str, width: int, strides: str
    ) -> None:
        """And nothing that lies between them, which is NaN."""
        if not _asked(trial, tile, Task.GATHER):
            return
        _same_rows(trial, _placed(trial, layout, getattr(torch, tile.dtype), strides, width))

    @each_dtype
    @pytest.mark.parametrize("base", [False, True], ids=["no base", "base"])
    @pytest.mark.parametrize("sink", ["", "head", "row"])
    def test_pieces_merge_by_their_lse_or_are_refused(
        self, trial: Trial, tile: Tile, sink: str, base: bool, dtype: str
    ) -> None:
        """Rows of several pieces, of one and of none, and pieces that saw nothing."""
        _merges(trial, tile, Merging(sink=sink, base=base, dtype=dtype))

    @each_dtype
    @pytest.mark.parametrize("base", [False, True], ids=["no base", "base"])
    def test_pieces_without_an_lse_add_up_or_are_refused(
        self, trial: Trial, tile: Tile, base: bool, dtype: str
    ) -> None:
        """As gradients do; a row of no piece is zero."""
        _merges(trial, tile, Merging(with_lse=False, base=base, dtype=dtype))

    @pytest.mark.parametrize("with_lse", [True, False], ids=["lse", "no lse"])
    @pytest.mark.parametrize("width", [1, 3, 64])
    @pytest.mark.parametrize("layout", ["whole", "dilated", "interleaved", "indexed"])
    def test_pieces_of_any_rows_merge(
        self, trial: Trial, tile: Tile, layout: str, width: int, with_lse: bool
    ) -> None:
        """Views, dilated views and listed rows, of any width."""
        wanted = Merging((layout, "indexed alike"), width=width, with_lse=with_lse)
        _merges(trial, tile, replace(wanted, dtype=tile.dtype))

    @each_dtype
    @pytest.mark.parametrize("wide_pieces", [0, 3, 6])
    @pytest.mark.parametrize("wide_result", [True, False], ids=["wide result", "narrow result"])
    @pytest.mark.parametrize("with_lse", [True, False], ids=["lse", "no lse"])
    def test_sums_are_wide_and_rounded_once(
        self,
        trial: Trial,
        tile: Tile,
        with_lse: bool,
        wide_result: bool,
        wide_pieces: int,
        dtype: str,
    ) -> None:
        """Whether pieces and result have the inputs' dtype or are as wide as float32."""
        many = ("whole", "dilated", "indexed", "interleaved", "whole", "whole")
        wanted = Merging(many, dtype=dtype, wide_pieces=wide_pieces, wide_result=wide_result)
        _merges(trial, tile, replace(wanted, with_lse=with_lse))

    @pytest.mark.parametrize("sink", ["", "head", "row"])
    def test_no_pieces_leave_what_was_merged_before(
        self, trial: Trial, tile: Tile, sink: str
    ) -> None:
        """But for the sink, and for the rounding of the result."""
        _merges(trial, tile, Merging((), base=True, dtype=tile.dtype, sink=sink))

    @pytest.mark.parametrize("largest_lse", [100.0, 1e4])
    def test_pieces_of_very_different_weight_merge(
        self, trial: Trial, tile: Tile, largest_lse: float
    ) -> None:
        """One takes it all, and exponentials under- and overflow."""
        _merges(trial, tile, Merging(largest_lse=largest_lse, dtype=tile.dtype, sink="row"))

    @pytest.mark.parametrize("sink", ["", "row"])
    @pytest.mark.parametrize("count", [5, 17, 35])
    def test_any_number_of_pieces_merges(
        self, trial: Trial, tile: Tile, count: int, sink: str
    ) -> None:
        """Also where a kernel takes so many at a time; the sink counts once."""
        layouts = ("whole", "dilated", "indexed", "interleaved")
        many = tuple(layouts[number % 4] for number in range(count))
        _merges(trial, tile, Merging(many, width=8, base=True, dtype=tile.dtype, sink=sink))

    @pytest.mark.parametrize("with_lse", [True, False], ids=["lse", "no lse"])
    def test_what_is_merged_is_left_alone(self, trial: Trial, tile: Tile, with_lse: bool) -> None:
        """Pieces and what was merged before are as they were; the result is new."""
        wanted = Merging(base=True, with_lse=with_lse, dtype=tile.dtype)
        if not _asked(trial, tile, Task.MERGE):
            return
        given = wanted.operands(torch_device(trial.device))
        before = [x.clone() for x in given.tensors()]
        for result in given.merged(trial.backend):
            if result is not None:
                result.fill_(7.0)
        assert all(torch.equal(x, y) for x, y in zip(given.tensors(), before, strict=True))
        trial.verdict.served()


def _asked(trial: Trial, tile: Tile, task: Task) -> bool:
    """Whether the backend takes the task; a refusal is recorded."""
    problem = _problem(trial, tile, task)
    reasons = list(trial.backend.reasons_against(problem))
    if task not in trial.backend.capabilities.tasks:
        assert reasons, f"{task} is not declared, and nothing speaks against it"
    if reasons:
        trial.verdict.refused(*reasons)
    return not reasons


def _problem(trial: Trial, tile: Tile, task: Task) -> Problem:
    """As the engine asks, for rows of any mask."""
    backward = trial.backend.capabilities.backward
    problem = replace(tile, mask=MaskCase.FULL).problem(trial.device, needs_backward=backward)
    return replace(problem, task=task)


def _placed(
    trial: Trial, layout: str, dtype: torch.dtype, strides: str, width: int
) -> tuple[Placed, ...]:
    """Queries, keys and a number for each query, with their rows."""
    draw = torch.Generator().manual_seed(0)
    heads = heads_of("all", 2, 2)
    queries, keys, (N, M) = place(layout, heads, 3, (5, 4), draw)

    def normal(rows: int, heads: int, width: int, dtype: torch.dtype) -> Tensor:
        x = torch.randn(2, rows, heads, width, generator=draw, dtype=torch.float64)
        return strided(x.to(torch_device(trial.device), dtype), strides)

    wide = torch.promote_types(dtype, torch.float32)
    return (
        Placed(queries, normal(N, 4, width, dtype)),
        Placed(keys, normal(M, 2, width, dtype)),
        Placed(queries, normal(N, 4, 1, wide)),
    )


def _same_rows(trial: Trial, placed: tuple[Placed, ...]) -> None:
    found = trial.backend.gather(*placed)
    assert len(found) == len(placed)
    for result, (rows, tensor) in zip(found, placed, strict=True):
        assert result.dtype == tensor.dtype
        assert result.is_contiguous()
        assert torch.equal(result, rows.tile_batch(tensor))
    trial.verdict.served()


def _merges(trial: Trial, tile: Tile, wanted: Merging) -> None:
    if _asked(trial, replace(tile, dtype=wanted.dtype), Task.MERGE):
        given = wanted.operands(torch_device(trial.device))
        given.assert_merged(*given.merged(trial.backend))
        trial.verdict.served()
