"""A backend is timed on tiles of the real shape, without disturbing anything."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from ringspan.contracts import AttentionBackend, DeviceInfo, InvalidArgument, MaskCase, Problem
from ringspan.engine import sample as samples
from ringspan.engine import timing
from ringspan.engine.sample import dropout_of, fitted, mask_of, tensors_of
from ringspan.engine.timing import Sample, seconds
from ringspan.errors import CannotMeasure
from ringspan.testing.toy import Toy
from ringspan.testing.toy_whole import ToyWhole

if TYPE_CHECKING:
    from ringspan.contracts import Grads, TileOutput

CPU = torch.device("cpu")
PROBLEM = Problem("cpu", "float32", MaskCase.FULL, head_dim=8, value_head_dim=4, group_size=2)
SQUARE = Sample(tiles=2, query_length=65, key_length=65, heads=4)


class Watched(Toy):
    """Notes what it is handed."""

    def __init__(self) -> None:
        self.forwards: list[tuple[torch.Tensor, ...]] = []
        self.backwards: list[tuple[torch.Tensor, ...]] = []
        self.grad_modes: set[bool] = set()

    def forward(self, *tensors: Any, **options: Any) -> TileOutput:
        """As the toy."""
        self.forwards.append(tensors)
        self.grad_modes.add(torch.is_grad_enabled())
        return super().forward(*tensors, **options)

    def backward(self, *tensors: Any, **options: Any) -> Grads:
        """As the toy."""
        self.backwards.append(tensors)
        return super().backward(*tensors, **options)


@pytest.mark.parametrize("needs_backward", [True, False])
@pytest.mark.parametrize("mask", MaskCase)
def test_a_backend_can_be_timed_on_any_mask(mask: MaskCase, needs_backward: bool) -> None:
    problem = replace(PROBLEM, mask=mask, needs_backward=needs_backward)
    watched = Watched()
    assert seconds(watched, problem, SQUARE) > 0
    assert bool(watched.backwards) == needs_backward
    assert watched.grad_modes == {False}


@pytest.mark.parametrize(("queries", "keys"), [(96, 32), (32, 96), (1, 50), (50, 1)])
@pytest.mark.parametrize("mask", sorted(set(MaskCase) - {MaskCase.CAUSAL}))
def test_tiles_that_are_not_square_are_timed_as_they_are(
    mask: MaskCase, queries: int, keys: int
) -> None:
    watched = Watched()
    seconds(watched, replace(PROBLEM, mask=mask), Sample(2, queries, keys, 4))
    for query, key, value in watched.forwards:
        assert query.shape == (2, queries, 4, 8)
        assert key.shape == (2, keys, 2, 8)
        assert value.shape == (2, keys, 2, 4)
    assert all(not grad.isnan().any() for grads in watched.backwards for grad in grads)


def test_a_triangle_and_blocks_must_be_square() -> None:
    for problem in (replace(PROBLEM, mask=MaskCase.CAUSAL), replace(PROBLEM, blocks=True)):
        with pytest.raises(InvalidArgument, match="sample: expected a square tile, got 3 x 4"):
            mask_of(Sample(1, 3, 4, 2), problem, CPU, bands=True)


@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (100, 40), (40, 100), (1, 9), (9, 1)])
def test_a_band_shows_every_query_a_key_and_both_ends_are_seen(queries: int, keys: int) -> None:
    band = replace(PROBLEM, mask=MaskCase.BAND)
    sample = Sample(1, queries, keys, 2)
    interval = mask_of(sample, band, CPU, bands=False)
    assert mask_of(sample, band, CPU, bands=True).case is MaskCase.BAND
    assert interval.low is not None
    assert interval.high is not None
    assert (interval.high > interval.low).all()
    assert (interval.low[0], interval.high[-1]) == (0, keys)


def test_what_the_problem_has_beside_its_mask_is_there() -> None:
    blocks = mask_of(SQUARE, replace(PROBLEM, blocks=True), CPU, bands=True).blocks
    assert blocks is not None
    assert blocks.bounds.tolist() == [0, 64, 65]
    assert blocks.area == 65**2
    padded = mask_of(SQUARE, replace(PROBLEM, key_padding=True), CPU, bands=True).key_seen
    assert padded is not None
    assert padded.sum() == 65 - 8
    ragged = replace(PROBLEM, ragged=True)
    lengths = mask_of(SQUARE, ragged, CPU, bands=True).lengths
    assert lengths is not None
    assert lengths.query_bounds.tolist() == [0, 65, 130]
    assert tensors_of(SQUARE, ragged, CPU).query.shape == (1, 130, 4, 8)
    assert dropout_of(SQUARE, PROBLEM, CPU).kept().shape == (2, 4, 65, 65)


def test_padding_and_dropout_are_timed_too() -> None:
    assert seconds(Toy(), replace(PROBLEM, key_padding=True, dropout=True), SQUARE) > 0


def test_a_long_diagonal_of_blocks_is_a_band_of_blocks() -> None:
    blocks = mask_of(Sample(1, 640, 640, 2), replace(PROBLEM, blocks=True), CPU, bands=True).blocks
    assert blocks is not None
    assert blocks.indptr.tolist() == [0, 2, *range(5, 27, 3), 28]


def test_timing_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    seconds(Toy(), PROBLEM, SQUARE)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_sample_that_is_too_large_loses_tiles_then_heads_then_length() -> None:
    wide = replace(PROBLEM, head_dim=64, value_head_dim=64)
    assert fitted(SQUARE, wide, CPU) == SQUARE
    tiles = fitted(Sample(1024, 512, 512, 8), wide, CPU)
    assert (tiles.query_length, tiles.heads) == (512, 8)
    assert 1 <= tiles.tiles < 1024
    heads = fitted(Sample(4, 16384, 16384, 32), wide, CPU)
    assert (heads.tiles, heads.query_length) == (1, 16384)
    assert heads.heads in (2, 4)
    length = fitted(Sample(4, 2**24, 2**24, 32), wide, CPU)
    assert (length.tiles, length.heads) == (1, 2)
    assert length.query_length == length.key_length < 2**24


def test_a_sample_takes_at_most_a_quarter_of_the_free_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = 4 * 2**20
    monkeypatch.setattr(samples, "detect", lambda _: DeviceInfo(type="cpu", memory_free=free))
    small = fitted(Sample(64, 256, 256, 4), PROBLEM, CPU)
    assert small.tiles < 64
    tensors = tensors_of(small, PROBLEM, CPU)
    assert 2 * sum(x.numel() * x.element_size() for x in tensors) <= 2 * free // 4


def test_memory_that_torch_holds_for_later_tensors_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(samples, "detect", lambda _: DeviceInfo(type="cuda", memory_free=5))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 40)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 10)
    assert samples._free_bytes(torch.device("cuda")) == 35
    monkeypatch.setattr(samples, "detect", lambda _: DeviceInfo(type="cuda"))
    assert samples._free_bytes(torch.device("cuda")) is None


def test_a_bitmap_counts_as_memory() -> None:
    bitmap = replace(PROBLEM, mask=MaskCase.BITMAP)
    assert fitted(Sample(1, 8192, 8192, 2), bitmap, CPU).query_length < 8192


@pytest.mark.parametrize("name", ["tiles", "query_length", "key_length", "heads"])
def test_a_sample_without_extent_is_refused_by_name(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"{name}: expected an integer >= 1, got 0"):
        replace(SQUARE, **{name: 0})


def test_nothing_is_measured_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with pytest.raises(CannotMeasure, match="Warm up first"):
        seconds(Toy(), PROBLEM, SQUARE)


def test_a_cuda_device_is_waited_for_once_and_the_median_of_its_own_clock_counts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    log: list[str] = []
    ticks = iter([0.0, 1.0, 1.0, 9.0, 9.0, 11.0, 11.0, 14.0, 14.0, 18.0])

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing
            self.at = -1.0

        def record(self) -> None:
            self.at = next(ticks)

        def elapsed_time(self, end: Event) -> float:
            assert log[-1] == "wait"
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    measured = timing._on_cuda(lambda: log.append("run"))
    assert log == ["run"] * 5 + ["wait"]
    assert sorted(measured) == pytest.approx([0.001, 0.002, 0.003, 0.004, 0.008])


@pytest.mark.parametrize("padded", [False, True], ids=["", "padding and dropout"])
@pytest.mark.parametrize("mask", list(MaskCase), ids=str)
@pytest.mark.parametrize("backend", [Toy(), ToyWhole()], ids=lambda backend: backend.name)
def test_rows_that_lie_apart_are_measured_where_they_lie(
    backend: AttentionBackend, mask: MaskCase, padded: bool
) -> None:
    asked = Problem("cpu", "float32", mask, 8, 8, group_size=2, key_padding=padded, dropout=padded)
    assert seconds(backend, asked, Sample(2, 12, 12, 4, step=3)) > 0
