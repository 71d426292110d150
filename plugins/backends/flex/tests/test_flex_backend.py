"""The standard tests, on a GPU with the compiled kernel; without one, on FlexAttention's formula.

Compiled, FlexAttention has no log-sum-exp on a CPU, and its public function refuses tensors that
need a gradient there. The operator underneath has a dense implementation with both, and an autograd
formula of its own. `Dense` is the provider with that operator in place of the compiled one:
what it tests is everything but the generated code, masks and gradients before all.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any, ClassVar

import pytest
import torch
from ringspan.contracts import (
    CAUSAL,
    FULL,
    AttentionBackend,
    Availability,
    Capabilities,
    DeviceInfo,
    Lengths,
    Mask,
    MaskCase,
    Problem,
)
from ringspan.contracts.adapters.trial import trial
from ringspan.testing import AttentionBackendSuite, assert_exact
from ringspan.testing.stand_ins.on_cpu import OnCpu
from ringspan.testing.suites.tiles import Operands, Tile
from ringspan_flex import Flex, backend, masks, ringspan_attention_backends
from ringspan_flex.blocks import BLOCK
from ringspan_flex.kernel import Attention, Shapes, compiled, gradients
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import (
    BlockMask,
    _create_empty_block_mask,
    create_block_mask,
)

torch.set_num_threads(1)

CPU = DeviceInfo(type="cpu")
COMPILE = torch.compile


def dense(
    query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask | None, scale: float
) -> tuple[Tensor, Tensor]:
    """The operator under `flex_attention`, all scores at once; its log-sum-exp is one of base 2."""
    blocks = blocks or _create_empty_block_mask(query, key)

    def same(score: Tensor, *positions: Tensor) -> Tensor:
        return score

    operator: Any = torch.ops.higher_order.flex_attention
    out, lse, _ = operator(query, key, value, same, blocks.as_tuple(), scale, {})
    return out, lse * math.log(2)


class Dense(OnCpu, Flex):
    """`flex` without the compiler."""

    def proof(self, device: DeviceInfo) -> Availability:
        return dense_trial()

    def attention(
        self, mask: Mask, query: Tensor, key: Tensor, scale: float, *, trained: bool
    ) -> Attention:
        return dense


@cache
def dense_trial() -> Availability:
    return trial(Dense(), torch.device("cpu"), torch.float32)


class TestFlex(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Flex()


class TestDense(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Dense()


# Masks


def literal(mask: Mask, sizes: masks.Sizes) -> BlockMask:
    """FlexAttention's own blocks, which it finds pair by pair."""
    made = masks.block_mask(mask, sizes)
    assert made is not None
    return create_block_mask(
        made.mask_mod, sizes.batch, sizes.heads, sizes.queries, sizes.keys, device="cpu"
    )


@pytest.mark.parametrize("key_padding", [False, True])
@pytest.mark.parametrize("axes", ["", "L", "BHL"])
@pytest.mark.parametrize("case", sorted(set(MaskCase) - {MaskCase.FULL}))
@pytest.mark.parametrize(("queries", "keys"), [(300, 300), (256, 384), (1, 129)])
def test_no_block_is_left_out_and_whole_ones_are_known(
    case: MaskCase, axes: str, key_padding: bool, queries: int, keys: int
) -> None:
    tile = Tile(
        query_length=queries,
        key_length=queries if case is MaskCase.CAUSAL else keys,
        mask=case,
        group_size=2,
        mask_axes=axes,
        key_padding=key_padding,
    )
    mask = tile.operands(CPU).mask
    if case is MaskCase.BAND:
        mask = replace(mask, left=140, right=max(0, keys - queries) + 5)
    if case is MaskCase.INTERVAL:  # wide enough to have whole blocks
        assert mask.high is not None
        mask = replace(mask, high=mask.high.clamp(min=keys - 20))
    sizes = masks.Sizes(2, tile.heads, tile.kv_heads, queries, tile.keys, torch.device("cpu"))
    made, expected = masks.block_mask(mask, sizes), literal(mask, sizes)
    assert made is not None
    shape = expected.to_dense().shape
    assert made.shape[-2:] == expected.shape[-2:]
    whole = every(made).expand(shape)
    assert torch.equal(whole, every(expected))
    assert (made.to_dense().expand(shape).bool() | ~expected.to_dense().bool()).all()
    if case is MaskCase.BITMAP and not key_padding:
        assert torch.equal(made.to_dense().expand(shape), expected.to_dense())


def every(blocks: BlockMask) -> Tensor:
    """Which blocks are whole."""
    counts, order = blocks.full_kv_num_blocks, blocks.full_kv_indices
    assert counts is not None
    assert order is not None
    some = torch.arange(order.shape[-1]) < counts[..., None]
    return torch.zeros_like(some).scatter_(-1, order.long(), some)


def test_a_long_window_has_few_blocks_and_no_table_of_pairs() -> None:
    length = 1 << 16
    mask = Mask(MaskCase.BAND, left=1000, right=0)
    made = masks.block_mask(mask, masks.Sizes(1, 8, 8, length, length, torch.device("cpu")))
    assert made is not None
    assert made.kv_num_blocks.shape == (1, 1, length // BLOCK)
    assert int((made.kv_num_blocks + every(made).sum(-1)).max()) <= 1000 // BLOCK + 3


def test_a_mask_of_the_same_tensors_is_made_once() -> None:
    sizes = masks.Sizes(1, 2, 2, 40, 40, torch.device("cpu"))
    row = torch.arange(40)
    mask = Mask(MaskCase.INTERVAL, low=row * 0, high=row + 1)
    made = masks.block_mask(mask, sizes)
    assert masks.block_mask(replace(mask), sizes) is made
    assert masks.block_mask(replace(mask, high=row + 1), sizes) is not made
    row.zero_()  # what its low and high were made from
    assert masks.block_mask(mask, sizes) is made
    assert mask.high is not None
    mask.high.add_(1)
    assert masks.block_mask(mask, sizes) is not made


@pytest.mark.parametrize("group_size", [1, 2])
@pytest.mark.parametrize("left", [0, 3, 50])
def test_bands_are_exact(left: int, group_size: int) -> None:
    operands = Tile(query_length=33, key_length=37, group_size=group_size).operands(CPU)
    band = replace(operands, mask=Mask(MaskCase.BAND, left=left, right=5))
    interval = replace(operands, mask=band.mask.as_interval(33, 37, torch.device("cpu")))
    assert_exact(band.results(Dense()), interval.exact())


@pytest.mark.parametrize("case", [MaskCase.FULL, MaskCase.CAUSAL])
def test_tiles_of_many_lengths_are_exact(case: MaskCase) -> None:
    rows = torch.tensor([0, 5, 6, 40], dtype=torch.int32)
    keys = rows if case is MaskCase.CAUSAL else torch.tensor([0, 9, 10, 31], dtype=torch.int32)
    tile = Tile(batch=1, query_length=40, key_length=int(keys[-1]), kv_heads=2, group_size=2)
    operands = tile.operands(CPU)
    ragged = replace(operands, mask=Mask(case, lengths=Lengths(rows, keys, 34, 25)))
    row = torch.arange(40)
    own = torch.bucketize(row, rows[1:], right=True)
    low, high = keys[own], keys[own + 1]
    if case is MaskCase.CAUSAL:
        high = row + 1
    said = replace(operands, mask=Mask(MaskCase.INTERVAL, low, high))
    assert_exact(ragged.results(Dense()), said.exact())


def test_more_tiles_than_a_grid_has_are_cut_with_their_masks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(backend, "LARGEST_BATCH", 2)
    for case in (MaskCase.INTERVAL, MaskCase.BITMAP):
        for axes in ("L", "BHL"):
            tile = Tile(batch=5, mask=case, mask_axes=axes, key_padding=True)
            operands = tile.operands(CPU)
            assert_exact(operands.results(Dense()), operands.exact())


# Gradients


def test_the_gradients_of_a_piece_are_those_of_the_whole_for_its_keys() -> None:
    """The identity behind `gradients`, in float64 and apart from any kernel."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, dO = (
        torch.randn(2, 3, 12, 8, generator=generator, dtype=torch.float64) for _ in range(4)
    )

    def plain(
        query: Tensor, key: Tensor, value: Tensor, blocks: BlockMask | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        scores = scale * query @ key.mT
        return scores.softmax(-1) @ value, scores.logsumexp(-1)

    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = plain(*leaves, None, 0.4)
    dq, dk, dv = torch.autograd.grad(out, leaves, dO)
    total = torch.zeros_like(dq)
    for keys in (slice(0, 5), slice(5, 12)):
        part = (q, k[:, :, keys], v[:, :, keys])
        found = gradients(plain, dO, *part, out.detach(), lse.detach(), None, 0.4)
        total += found[0]
        torch.testing.assert_close(found[1], dk[:, :, keys])
        torch.testing.assert_close(found[2], dv[:, :, keys])
    torch.testing.assert_close(total, dq)


@pytest.mark.parametrize("anywhere", [torch.inf, 3.0])
def test_a_row_without_keys_here_has_no_gradient_here(anywhere: float) -> None:
    operands = Tile(batch=1, kv_heads=1, mask=MaskCase.INTERVAL).operands(CPU)
    nothing = torch.zeros(33, dtype=torch.int64)
    operands = replace(operands, mask=Mask(MaskCase.INTERVAL, nothing, nothing))
    out, lse = operands.forward(Dense())
    assert (out == 0).all()
    assert (lse == -torch.inf).all()
    grads = operands.backward(Dense(), torch.ones_like(out), torch.full_like(lse, anywhere))
    assert all((x == 0).all() for x in grads)


# What is compiled, and what is refused


def shapes(**changed: Any) -> Shapes:
    given = {"mask": "full", "heads": 2, "kv_heads": 2, "head_dim": 16, "dtype": torch.float32}
    where = {"device": torch.device("cpu"), "scale": 1.0, "special": (), "trained": False}
    return Shapes(**(given | where | changed))


def test_each_kind_of_mask_and_class_of_shapes_is_compiled_once() -> None:
    assert compiled(shapes()) is compiled(shapes())
    assert compiled(shapes(mask="causal")) is not compiled(shapes())
    assert compiled(shapes(heads=4)) is not compiled(shapes())


LENGTHS = ((33, 29), (40, 30), (200, 300), (150, 260))


@pytest.mark.parametrize("case", sorted(set(MaskCase) - {MaskCase.BAND}))
def test_one_compiled_kernel_serves_masks_and_lengths_of_its_class(
    case: MaskCase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced for the compiler and then run as the dense formula, since a CPU has no kernel."""
    counters: list[Any] = []

    def traced(function: Any, **options: Any) -> Any:
        counters.append(CompileCounterWithBackend("eager"))
        return COMPILE(function, backend=counters[-1], **options)

    class Traced(Flex):
        capabilities: ClassVar[Capabilities] = replace(
            Flex.capabilities, devices=frozenset({"cpu"}), backward=False
        )

    compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", traced)
    for seed, (queries, keys) in enumerate(LENGTHS):
        for batch in (2, 3):
            tile = Tile(
                batch=batch,
                query_length=queries,
                key_length=keys,
                mask=case,
                group_size=2,
                mask_axes="BL",
                key_padding=True,
                seed=seed,
            )
            operands = tile.operands(CPU)
            assert_exact(operands.results(Traced()), operands.exact())
    compiled.cache_clear()
    assert len(counters) <= len(LENGTHS)
    assert max(counter.frame_count for counter in counters) <= 4  # torch.compile takes 8


def test_what_the_compiler_refuses_raises_and_does_not_run_uncompiled() -> None:
    x = torch.randn(1, 2, 8, 16)
    with pytest.raises(Exception, match="return_lse"):
        compiled(shapes(scale=0.5))(x, x, x, None, 0.5)


def test_a_cpu_is_refused_with_the_reason() -> None:
    found = Flex().probe(CPU)
    assert not found.usable
    assert "no log-sum-exp on a CPU" in found.remedy
    assert list(Flex().reasons_against(Problem("cpu", "float32", MaskCase.FULL, 16, 16)))


def test_it_stands_behind_kernels_and_above_plain_products() -> None:
    (found,) = ringspan_attention_backends()
    assert found.name == "flex"
    assert found.priority(DeviceInfo(type="cuda")) == 40
    assert found.priority(CPU) == -50


def test_autocast_leaves_the_result_alone() -> None:
    operands = replace(Tile().operands(CPU), mask=FULL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        results = operands.results(Dense())
    assert results["out"].dtype == torch.float32
    assert_exact(results, operands.exact())


def test_no_graph_is_recorded() -> None:
    operands: Operands = replace(Tile(key_length=33).operands(CPU), mask=CAUSAL)
    operands.query.requires_grad_()
    assert not any(x.requires_grad for x in operands.results(Dense()).values())
