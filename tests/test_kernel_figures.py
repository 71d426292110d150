"""The figures of kernels count what they say that they count."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import ringspan as rs
import torch

from tests.isolation.workspace import ROOT

# Benchmarks are scripts, which find each other beside themselves.
sys.path.append(str(ROOT / "benchmarks"))
import bare
import figures
import kernels
import torchscale_style
from bare import Shape, best, flops, paired
from dilated import Dilated
from ringspan.contracts import AttentionBackend, Availability, DeviceInfo, Grads, TileOutput

CPU = torch.device("cpu")
SHAPE = Shape(2, 48, 4, 8, torch.float32, CPU, causal=True)
PROBLEM = Dilated(512, 32, 16, 8, torch.float32, CPU, causal=True)


@pytest.mark.parametrize("causal", [False, True])
def test_dense_operations_are_those_of_the_plan(causal: bool) -> None:
    shape = replace(SHAPE, causal=causal)
    q = torch.empty(2, 48, 4, 8)
    assert flops(shape, backward=False) == rs.explain(q, q, q, causal=causal).flops
    assert flops(shape, backward=True) == 3.5 * flops(shape, backward=False)


@pytest.mark.parametrize("causal", [False, True])
def test_dilated_operations_are_those_of_dense_tiles(causal: bool) -> None:
    problem = replace(PROBLEM, causal=causal)
    one = flops(replace(problem.dense, batch=1, heads=1), backward=True)
    # Every token of a head is in a tile of the first branch, every second one of the next, ..
    tiles = sum(512 // 32 // rate * 16 for rate in problem.dilation_rates)
    assert problem.flops() == tiles * one


def test_every_tile_is_of_one_length() -> None:
    q = torch.empty(1, 512, 16, 8)
    steps = rs.explain(q, q, q, pattern=PROBLEM.pattern, causal=True).ranks[0].steps
    launches = [launch for step in steps for launch in step.launches]
    assert launches
    assert all("heads, 32 x 32, causal, views" in launch for launch in launches)


@pytest.mark.parametrize("causal", [False, True])
def test_both_sides_compute_the_same(causal: bool) -> None:
    problem = replace(PROBLEM, causal=causal, dtype=torch.float64)
    *leaves, _ = problem.tensors()
    ours = rs.attention(*leaves, pattern=problem.pattern, causal=causal, backend="manual")
    kernel = bare.named("manual", problem.dense)
    branches = problem.segment_lengths, problem.dilation_rates
    theirs = torchscale_style.attention(*leaves, *branches, causal=causal, kernel=kernel)
    torch.testing.assert_close(theirs, ours)


class Slow(AttentionBackend):
    """Milliseconds where others take microseconds."""

    name = "slow"
    asked: list[int]

    def __init__(self) -> None:
        self.asked = []

    def probe(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def forward(self, query: torch.Tensor, *_: torch.Tensor, **options: object) -> TileOutput:
        self.asked.append(query.shape[1])
        sum(torch.randn(200, 200).exp().sum() for _ in range(100))
        return TileOutput(query, query[..., 0].transpose(1, 2))

    def backward(self, *tensors: torch.Tensor, **options: object) -> Grads:
        raise RuntimeError("no backward")


class Quick(Slow):
    name = "quick"

    def forward(self, query: torch.Tensor, *_: torch.Tensor, **options: object) -> TileOutput:
        self.asked.append(query.shape[1])
        return TileOutput(query, query[..., 0].transpose(1, 2))


def test_kernels_that_are_slow_on_short_tiles_are_not_tried_on_long_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow, quick = Slow(), Quick()
    monkeypatch.setattr(bare, "candidates", lambda shape: [slow, quick])
    found = best(SHAPE, backward=False, short=8)
    assert found.backend is quick
    assert set(found.seconds) == {"quick"}
    assert (set(slow.asked), set(quick.asked)) == ({8}, {8, 48})


def test_kernels_that_fail_are_named_and_none_is_no_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bare, "candidates", lambda shape: [Quick()])
    with pytest.raises(figures.Unmeasured, match="no backward"):
        best(SHAPE, backward=True, short=8)


def test_pairs_are_seconds_of_single_calls() -> None:
    calls: list[str] = []
    found = paired(lambda: calls.append("a"), lambda: calls.append("b"), 4, CPU)
    assert len(found.first) == len(found.second) == 4
    assert max(found.first + found.second) < 0.01
    assert calls.count("a") == calls.count("b") > 4 * 40


def test_the_sizes_on_a_gpu_are_those_of_the_targets() -> None:
    assert kernels.GPU.dense == 16_384
    assert kernels.GPU.lengths == (65_536, 262_144, 1_048_576)
    assert (kernels.GPU.tile, kernels.GPU.heads, kernels.GPU.head_dim) == (2048, 16, 128)
    assert (kernels.GPU.forward, kernels.GPU.both) == ((262_144, 8, 64), (1_048_576, 8, 128))
    problem = replace(PROBLEM, tile=2048)
    assert problem.segment_lengths == (2048, 4096, 8192, 16384, 32768)
    assert problem.dilation_rates == (1, 2, 4, 8, 16)
