"""The standard tests of an attention backend.

Every problem is one that the backend computes exactly, or one that it refuses by reasons before
any work: what it does not declare is a test of its refusal. Exact is what the one rule of
`ringspan.testing.accuracy` calls so, for the output, the log-sum-exp and all gradients, with random
upstream gradients, against the formula in float64.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ringspan.contracts import AttentionBackend, DeviceInfo, MaskCase, Task
from ringspan.testing.suites.backend import each_dtype, each_mask
from ringspan.testing.suites.branch import BranchSuite
from ringspan.testing.suites.moves import MoveSuite
from ringspan.testing.suites.provider import steady
from ringspan.testing.suites.tiles import NAMES, STRIDES, Tile, wide
from ringspan.testing.suites.trial import (
    HEAD_DIMS,
    Trial,
    all_memory,
    beside_huge_scores,
    deterministic,
    merged,
    tiles,
)

if TYPE_CHECKING:
    from torch import Tensor

    from ringspan.testing.pytest_plugin import Verdict

__all__ = ["AttentionBackendSuite"]

LENGTHS = ((1, 1), (1, 192), (192, 1), (64, 64), (65, 33), (192, 320), (320, 192))
RAGGED = {
    "one": ((5, 3),),
    "uneven": ((1, 1), (17, 9), (3, 20), (20, 16), (1, 5)),
    "single rows": ((1, 1),) * 9,
}

with_and_without_padding = pytest.mark.parametrize(
    "key_padding", [False, True], ids=["no padding", "key padding"]
)


class AttentionBackendSuite(BranchSuite, MoveSuite, published=True):
    """Subclass it and say, in a fixture, what is tested; pytest finds the tests.

    What computes runs on every device of this machine that the backend can use. A backend with
    `backward=False` is tested forward, and must refuse problems that need a gradient.

    Example:
        >>> class TestMine(AttentionBackendSuite):
        ...     @pytest.fixture
        ...     def backend(self):
        ...         return Mine()
    """

    # What is declared

    def test_capabilities_name_what_torch_and_the_contract_know(
        self, backend: AttentionBackend
    ) -> None:
        """Devices, dtypes and masks that a problem can have."""
        declared = backend.capabilities
        assert declared.devices
        assert declared.dtypes
        assert all(getattr(torch, name).is_floating_point for name in declared.dtypes)
        assert declared.masks
        assert declared.masks <= set(MaskCase)
        assert declared.head_dims.minimum >= 1
        assert {Task.ATTEND} <= declared.tasks <= set(Task)
        assert MaskCase.FULL in declared.masks or not (declared.blocks or declared.ragged)

    @pytest.mark.parametrize("head_dim", [*HEAD_DIMS, 7, 4096])
    def test_every_declared_limit_is_among_the_reasons(
        self, backend: AttentionBackend, head_dim: int
    ) -> None:
        """What the capabilities say no to, `reasons_against` says no to."""
        for tile in (
            Tile(head_dim=head_dim, value_head_dim=head_dim, dtype="complex64"),
            Tile(head_dim=head_dim, value_head_dim=head_dim + 1),
            *(Tile(mask=mask, group_size=3, key_padding=True, dropout_p=0.5) for mask in MaskCase),
        ):
            for device in (DeviceInfo(type="cpu"), DeviceInfo(type="abacus")):
                problem = replace(tile.problem(device, needs_backward=True), deterministic=True)
                declared = backend.capabilities.reasons_against(problem, device)
                assert set(declared) <= set(backend.reasons_against(problem))

    def test_a_foreign_device_is_refused_with_reasons(
        self, backend: AttentionBackend, verdict: Verdict
    ) -> None:
        """Before any work, and not by a kernel that fails."""
        verdict.refused(*Trial(backend, DeviceInfo(type="abacus"), verdict).reasons(Tile()))

    def test_a_gradient_is_exact_or_refused(self, trial: Trial, tile: Tile) -> None:
        """A backend without a backward says so to every problem that needs one."""
        if trial.backend.capabilities.backward:
            trial.exact_or_refused(tile)
        else:
            problem = tile.problem(trial.device, needs_backward=True)
            trial.verdict.refused(*trial.backend.reasons_against(problem))

    # What is computed

    @each_dtype
    @each_mask
    def test_every_mask_in_every_dtype_is_exact_or_refused(
        self, trial: Trial, tile: Tile, mask: MaskCase, dtype: str
    ) -> None:
        """Outputs, log-sum-exps and gradients."""
        trial.exact_or_refused(replace(tile, mask=mask, dtype=dtype))

    @each_mask
    @pytest.mark.parametrize(("queries", "keys"), LENGTHS)
    def test_any_lengths_are_exact(
        self, trial: Trial, tile: Tile, mask: MaskCase, queries: int, keys: int
    ) -> None:
        """One row, `64 + 128 k` rows, more queries than keys and fewer."""
        alone = replace(tile, mask=mask, batch=1, seed=1)
        trial.exact_or_refused(replace(alone, query_length=queries, key_length=keys))

    @pytest.mark.parametrize("wider", [(0, 0), (3, 0), (0, 3), (17, 5), (1000, 1000)], ids=str)
    @pytest.mark.parametrize(("queries", "keys"), [(48, 48), (50, 19), (19, 50), (1, 9), (9, 1)])
    def test_bands_of_any_width_are_exact_or_refused(
        self, trial: Trial, tile: Tile, queries: int, keys: int, wider: tuple[int, int]
    ) -> None:
        """From the narrowest that shows every query a key to one that hides nothing."""
        band = replace(tile, mask=MaskCase.BAND, band=wider, query_length=queries, key_length=keys)
        trial.exact_or_refused(band)

    @each_mask
    @pytest.mark.parametrize("head_dim", HEAD_DIMS)
    def test_every_head_dim_is_exact_or_refused(
        self, trial: Trial, tile: Tile, mask: MaskCase, head_dim: int
    ) -> None:
        """Of queries, keys and values alike."""
        trial.exact_or_refused(replace(tile, mask=mask, head_dim=head_dim, value_head_dim=head_dim))

    @pytest.mark.parametrize("beyond", [-1, 0, 1])
    @pytest.mark.parametrize("border", ["minimum", "maximum", "multiple_of"])
    def test_the_borders_of_the_head_dims_are_where_they_are_declared(
        self, trial: Trial, tile: Tile, border: str, beyond: int
    ) -> None:
        """On a border exact, beyond it refused."""
        declared = getattr(trial.backend.capabilities.head_dims, border)
        head_dim = max(1, (512 if declared is None else declared) + beyond)
        trial.exact_or_refused(replace(tile, head_dim=head_dim, value_head_dim=head_dim))

    @each_mask
    @pytest.mark.parametrize("more", [8, -8, 64])
    def test_values_of_another_head_dim_are_exact_or_refused(
        self, trial: Trial, tile: Tile, mask: MaskCase, more: int
    ) -> None:
        """Wider and narrower ones."""
        D = tile.head_dim + 8
        trial.exact_or_refused(replace(tile, mask=mask, head_dim=D, value_head_dim=D + more))

    @each_mask
    @pytest.mark.parametrize("group_size", [2, 3])
    def test_shared_key_value_heads_are_exact_or_refused(
        self, trial: Trial, tile: Tile, mask: MaskCase, group_size: int
    ) -> None:
        """Query head `h` reads key/value head `h // group_size`; its gradient is a sum."""
        trial.exact_or_refused(replace(tile, mask=mask, group_size=group_size))

    @each_mask
    @pytest.mark.parametrize("mask_axes", ["", "L", "BL", "HL", "BHL"])
    @with_and_without_padding
    def test_masks_broadcast(
        self, trial: Trial, tile: Tile, mask: MaskCase, mask_axes: str, key_padding: bool
    ) -> None:
        """Over batch, heads and queries; some rows see no key, some keys are seen by no row."""
        trial.exact_or_refused(
            replace(tile, mask=mask, mask_axes=mask_axes, key_padding=key_padding, seed=3)
        )

    @each_mask
    @pytest.mark.parametrize("mask_axes", ["L", "BHL"])
    @with_and_without_padding
    def test_dropout_is_the_counter_based_one_or_refused(
        self, trial: Trial, tile: Tile, mask: MaskCase, mask_axes: str, key_padding: bool
    ) -> None:
        """Which probabilities are kept follows from positions; the normaliser has them all."""
        dropped = replace(tile, mask=mask, mask_axes=mask_axes, dropout_p=0.3, seed=2**40 + 7)
        trial.exact_or_refused(replace(dropped, key_padding=key_padding))

    @each_dtype
    @pytest.mark.parametrize("length", [1, 64, 130])
    @pytest.mark.parametrize(
        "modes", [{}, {"key_padding": True}, {"dropout_p": 0.3}, {"group_size": 3}], ids=str
    )
    def test_block_sparse_work_as_a_whole_is_exact_or_refused(
        self, trial: Trial, tile: Tile, dtype: str, length: int, modes: dict[str, Any]
    ) -> None:
        """Blocks of uneven lengths, whole and in part; one sees nothing."""
        whole = replace(tile, mask=MaskCase.FULL, blocks=True, dtype=dtype, query_length=length)
        trial.exact_or_refused(replace(whole, **modes))

    @each_dtype
    @pytest.mark.parametrize("mask", [MaskCase.FULL, MaskCase.CAUSAL], ids=str)
    @pytest.mark.parametrize("lengths", RAGGED.values(), ids=RAGGED)
    def test_tiles_of_many_lengths_in_one_call_are_exact_or_refused(
        self,
        trial: Trial,
        tile: Tile,
        lengths: tuple[tuple[int, int], ...],
        mask: MaskCase,
        dtype: str,
    ) -> None:
        """One after the other in a batch entry, on a GPU longer ones; none sees another's keys."""
        times = 1 if trial.device.type == "cpu" else 11
        longer = tuple((times * queries, times * keys) for queries, keys in lengths)
        trial.exact_or_refused(replace(tile, mask=mask, ragged=longer, dtype=dtype))

    @pytest.mark.parametrize("mask", [MaskCase.FULL, MaskCase.CAUSAL], ids=str)
    @pytest.mark.parametrize(
        "modes",
        [
            *({"key_padding": True}, {"dropout_p": 0.3}, {"group_size": 3}),
            *({"strides": strides} for strides in STRIDES[1:]),
        ],
        ids=str,
    )
    def test_tiles_of_many_lengths_have_every_mode(
        self, trial: Trial, tile: Tile, mask: MaskCase, modes: dict[str, Any]
    ) -> None:
        """Padding, dropout, shared heads and strides, along all tiles together."""
        ragged = replace(tile, mask=mask, ragged=RAGGED["uneven"], seed=5)
        trial.exact_or_refused(replace(ragged, **modes))

    @each_mask
    @pytest.mark.parametrize("strides", STRIDES)
    @pytest.mark.parametrize("wider", [0, 17])
    def test_any_strides_are_read_and_nothing_between_them(
        self, trial: Trial, tile: Tile, mask: MaskCase, strides: str, wider: int
    ) -> None:
        """Rows lie apart or on a diagonal, and NaN lies between them; masks have strides too.

        With `strided=False` rows are contiguous when they arrive, as from the engine.
        """
        D = tile.head_dim + wider
        trial.exact_or_refused(
            replace(tile, mask=mask, strides=strides, head_dim=D, value_head_dim=D)
        )

    @each_mask
    @pytest.mark.parametrize("scale", [-1.0, -0.1, -0.0, 0.0, 1e-50])
    def test_a_scale_that_is_not_above_zero_is_exact(
        self, trial: Trial, tile: Tile, mask: MaskCase, scale: float
    ) -> None:
        """The largest score is then not the one of the largest product."""
        trial.exact_or_refused(replace(tile, mask=mask, scale=scale))

    @each_mask
    @pytest.mark.parametrize("largest_score", [100.0, 1e4])
    def test_huge_scores_are_exact(
        self, trial: Trial, tile: Tile, mask: MaskCase, largest_score: float
    ) -> None:
        """One key takes it all, and exponentials under- and overflow."""
        trial.exact_or_refused(replace(tile, mask=mask, largest_score=largest_score))

    @pytest.mark.parametrize("mask", [MaskCase.INTERVAL, MaskCase.BAND, MaskCase.BITMAP], ids=str)
    @each_dtype
    def test_a_hidden_key_with_a_huge_score_contributes_nothing(
        self, trial: Trial, tile: Tile, mask: MaskCase, dtype: str
    ) -> None:
        """Each row sees one key of score -10,000 beside hidden ones of 10,000."""
        square = replace(tile, mask=mask, dtype=dtype, query_length=28, key_length=28)
        operands = trial.operands(square)
        if operands is not None:
            operands = beside_huge_scores(operands, mask)
            trial.exact(operands, operands.results(trial.backend))

    @each_mask
    def test_very_many_tiles_are_exact(self, trial: Trial, tile: Tile, mask: MaskCase) -> None:
        """On a GPU, more of them than a grid has blocks along its second axis."""
        many = 3000 if trial.device.type == "cpu" else 65_537
        tiny = replace(tile, mask=mask, query_length=2, key_length=3, kv_heads=1)
        trial.exact_or_refused(replace(tiny, batch=many))

    @given(data=st.data())
    @steady
    def test_any_tile_is_exact_or_refused(self, trial: Trial, data: st.DataObject) -> None:
        """Everything at once, drawn from what is declared; the same examples every time."""
        trial.exact_or_refused(data.draw(tiles(trial.backend)))

    # What is promised

    @each_mask
    @pytest.mark.parametrize("feature", ["plain", "key padding", "dropout"])
    def test_halves_of_the_keys_merge_to_the_whole(
        self, trial: Trial, tile: Tile, mask: MaskCase, feature: str
    ) -> None:
        """By their log-sum-exps; their gradients, given the merged result, add up to its own."""
        wanted = replace(
            tile,
            mask=mask,
            query_length=37,
            key_padding=feature == "key padding",
            dropout_p=0.3 if feature == "dropout" else 0.0,
            seed=4,
        )
        operands = trial.operands(wanted)
        if operands is None:
            return
        for _, _, part in operands.halves():
            assert not trial.reasons(replace(wanted, mask=part.mask.case))
        trial.exact(operands, merged(trial.backend, operands))

    @each_mask
    @each_dtype
    def test_a_row_with_an_lse_of_infinity_takes_no_part_in_the_gradients(
        self, trial: Trial, tile: Tile, mask: MaskCase, dtype: str
    ) -> None:
        """Such a row saw no key anywhere, whatever this tile shows it."""
        wanted = replace(tile, mask=mask, dtype=dtype)
        operands = trial.operands(wanted)
        if operands is None:
            return
        if not trial.backend.capabilities.backward:
            trial.verdict.refused("it has no backward")
            return
        absent = torch.zeros(wanted.batch, wanted.query_length, dtype=torch.bool)
        absent[0, ::3] = absent[-1, :5] = True
        there = absent.to(operands.query.device)
        out, lse = operands.forward(trial.backend)
        out = out.masked_fill(there[..., None, None], 0.0)
        lse = lse.masked_fill(there[:, None], torch.inf)
        grads = operands.backward(trial.backend, out, lse)
        trial.exact(operands, dict(zip(NAMES[2:], grads, strict=True)), padded=absent)

    @each_mask
    @each_dtype
    def test_results_have_the_shapes_and_dtypes_of_the_contract(
        self, trial: Trial, tile: Tile, mask: MaskCase, dtype: str
    ) -> None:
        """`out` like the query, `lse` `[B, H, Lq]` in float32 or float64, gradients in either."""
        wanted = replace(tile, mask=mask, dtype=dtype)
        operands = trial.operands(wanted)
        if operands is None:
            return
        results = operands.results(trial.backend)
        query, key, value, grad_out = operands.tensors
        assert results["out"].shape == grad_out.shape
        assert results["out"].dtype == query.dtype
        assert results["lse"].shape == (wanted.batch, wanted.heads, wanted.query_length)
        assert results["lse"].dtype == wide(query.dtype)
        for name, like in zip(NAMES[2:], (query, key, value), strict=True):
            if name in results:
                assert results[name].shape == like.shape
                assert results[name].dtype in (query.dtype, wide(query.dtype))
        assert {x.device for x in results.values()} == {query.device}
        trial.verdict.served()

    @each_mask
    @pytest.mark.parametrize("strides", ["contiguous", "gaps"])
    def test_inputs_are_left_alone_and_results_are_new(
        self, trial: Trial, tile: Tile, mask: MaskCase, strides: str
    ) -> None:
        """The engine changes results in place: each has memory of its own."""
        operands = trial.operands(replace(tile, mask=mask, strides=strides))
        if operands is None:
            return
        memory = [all_memory(x) for x in operands.tensors]
        before = [x.clone() for x in memory]
        results = operands.results(trial.backend)
        numbered = {
            name: _numbered(result, 50 * number)
            for number, (name, result) in enumerate(results.items())
        }
        for name, result in results.items():
            result.copy_(numbered[name])
        for name, result in results.items():
            assert torch.equal(result, numbered[name]), f"{name} shares memory"
        assert all(torch.equal(x, y) for x, y in zip(memory, before, strict=True))
        trial.verdict.served()

    @each_mask
    @pytest.mark.parametrize("wider", [0, 17])
    def test_new_memory_is_written_before_it_is_read(
        self, trial: Trial, tile: Tile, mask: MaskCase, wider: int
    ) -> None:
        """Every new tensor is full of NaN."""
        D = tile.head_dim + wider
        operands = trial.operands(replace(tile, mask=mask, head_dim=D, value_head_dim=D))
        if operands is None:
            return
        with deterministic(trial.backend, poisoned=True):
            results = operands.results(trial.backend)
        trial.exact(operands, results)

    @each_mask
    def test_autocast_leaves_the_results_alone(
        self, trial: Trial, tile: Tile, mask: MaskCase
    ) -> None:
        """The engine is called wherever users call it; what comes is already in its dtype."""
        operands = trial.operands(replace(tile, mask=mask))
        if operands is None:
            return
        with torch.autocast(trial.device.type, dtype=torch.bfloat16):
            results = operands.results(trial.backend)
        assert results["out"].dtype == operands.query.dtype
        trial.exact(operands, results)

    @each_mask
    def test_what_is_declared_deterministic_repeats_itself_bit_for_bit(
        self, trial: Trial, tile: Tile, mask: MaskCase
    ) -> None:
        """Where deterministic algorithms are required; other backends refuse such problems."""
        wanted = replace(tile, mask=mask, query_length=130, key_length=257)
        operands = trial.operands(wanted, deterministic=True)
        if operands is None:
            return
        with deterministic(trial.backend, poisoned=False):
            first, second = (operands.results(trial.backend) for _ in range(2))
        assert all(torch.equal(first[name], second[name]) for name in first)
        trial.verdict.served()


def _numbered(like: Tensor, first: int) -> Tensor:
    """Elements told apart by their values, as far as 16 bits can."""
    count = torch.arange(like.numel(), device=like.device) % 50 + first
    return count.reshape(like.shape).to(like.dtype)
