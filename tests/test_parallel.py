"""`ringspan.parallel` on rings: rows, gradient conventions, means, agreement and traffic."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from typing import Any

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan import parallel
from ringspan.errors import InvalidArgument, RanksDisagree, RingError
from ringspan.testing.ranks import Ring
from torch.distributed.device_mesh import init_device_mesh

WORLD_SIZES = (2, 3, 4)
DTYPES = (
    torch.bool,
    torch.uint8,
    torch.int32,
    torch.int64,
    torch.float8_e4m3fn,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
)


@dataclass(frozen=True)
class Problem:
    """A tensor of `N` tokens along `dim`, and who holds which of them."""

    world_size: int
    N: int
    dim: int = 1
    shape: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64

    @property
    def layout(self) -> rs.Layout:
        points = torch.tensor([[i // 5, i % 5] for i in range(self.N)], dtype=torch.int64)
        tokens = rs.Coordinates(points.reshape(-1, 2))
        return rs.Layout(tokens, self.world_size, **self.shape)

    def whole(self, seed: int = 0) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        sizes = [2, 3, 2]
        sizes[self.dim] = self.N
        return (torch.randn(sizes, generator=generator) * 3).to(self.dtype)


@st.composite
def problems(draw: st.DrawFn, world_size: int) -> Problem:
    N = draw(st.integers(0, 23))
    shape: dict[str, Any] = {"ordering": draw(st.sampled_from((None, "hilbert", "snake")))}
    if draw(st.booleans()):
        count = world_size - 1
        cuts = sorted(draw(st.lists(st.integers(0, N), min_size=count, max_size=count)))
        shape["sizes"] = tuple(b - a for a, b in zip((0, *cuts), (*cuts, N), strict=True))
    return Problem(world_size, N, draw(st.integers(-3, 2)), shape, draw(st.sampled_from(DTYPES)))


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    """Bit by bit."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    return torch.equal(*(x.contiguous().flatten().view(torch.uint8) for x in (found, expected)))


def there_and_back(rank: int, problem: Problem) -> tuple[bool, bool]:
    layout, whole = problem.layout, problem.whole()
    mine = parallel.shard({"x": whole}, layout, dim=problem.dim)
    back = parallel.gather(mine, layout, dim=problem.dim)
    expected = whole.movedim(problem.dim, 0)[layout.positions(rank)].movedim(0, problem.dim)
    return same(mine["x"], expected), same(back["x"], whole)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@settings(max_examples=60)
@given(data=st.data())
def test_rows_of_any_dtype_go_to_their_ranks_and_come_back(
    run_ring: Any, world_size: int, data: st.DataObject
) -> None:
    problem = data.draw(problems(world_size))
    assert run_ring(world_size, there_and_back, problem) == [(True, True)] * world_size


def without_a_layout(rank: int, lengths: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.arange(sum(lengths))
    mine = x.split(lengths)[rank].requires_grad_(False)
    return parallel.shard(x, dim=0), parallel.gather(mine, dim=0)


def test_without_a_layout_shards_are_contiguous_and_of_any_lengths(run_ring: Any) -> None:
    for lengths in ((3, 3, 3), (3, 4, 3), (0, 10, 0), (0, 0, 0)):
        x = torch.arange(sum(lengths))
        even = rs.Layout(len(x), 3)
        for rank, (mine, whole) in enumerate(run_ring(3, without_a_layout, lengths)):
            assert torch.equal(mine, even.positions(rank))
            assert torch.equal(whole, x)


@dataclass(frozen=True)
class Gradients:
    """What each convention gives one rank, from random upstream gradients."""

    own: torch.Tensor
    of_all: torch.Tensor


def gradients_of_shard(rank: int, problem: Problem) -> Gradients:
    whole = problem.whole().requires_grad_()
    upstream = problem.layout.shard(problem.whole(seed=1 + rank), rank, dim=problem.dim)

    def gradient(name: Any) -> torch.Tensor:
        mine = parallel.shard(whole, problem.layout, dim=problem.dim, gradient=name)
        return torch.autograd.grad(mine, whole, upstream)[0]

    return Gradients(gradient("own"), gradient("gathered"))


def gradients_of_gather(rank: int, problem: Problem) -> Gradients:
    mine = problem.layout.shard(problem.whole(), rank, dim=problem.dim).requires_grad_()
    upstream = problem.whole(seed=1 + rank)

    def gradient(name: Any) -> torch.Tensor:
        whole = parallel.gather(mine, problem.layout, dim=problem.dim, gradient=name)
        return torch.autograd.grad(whole, mine, upstream)[0]

    return Gradients(gradient("own"), gradient("summed"))


def differentiable(problem: Problem) -> bool:
    # Sums of 16-bit gradients are rounded once; that they are is another test's.
    return problem.dtype in (torch.float32, torch.float64, torch.complex64)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@settings(max_examples=25)
@given(data=st.data())
def test_every_gradient_is_what_its_convention_says(
    run_ring: Any, world_size: int, data: st.DataObject
) -> None:
    problem = data.draw(problems(world_size).filter(differentiable))
    upstreams = [problem.whole(seed=1 + rank) for rank in range(world_size)]
    held = [
        torch.zeros(problem.N, 1, 1).index_fill_(0, problem.layout.positions(rank), 1.0)
        for rank in range(world_size)
    ]
    # R_p^T R_p as a mask over the full tensor.
    own = [
        (x.movedim(problem.dim, 0) * mask).movedim(0, problem.dim)
        for x, mask in zip(upstreams, held, strict=True)
    ]
    summed = torch.stack(upstreams).sum(0)
    for rank, found in enumerate(run_ring(world_size, gradients_of_shard, problem)):
        assert torch.equal(found.own, own[rank])
        assert torch.equal(found.of_all, torch.stack(own).sum(0))
    for rank, found in enumerate(run_ring(world_size, gradients_of_gather, problem)):
        rows = problem.layout.shard(upstreams[rank], rank, dim=problem.dim)
        assert torch.equal(found.own, rows)
        assert torch.equal(found.of_all, problem.layout.shard(summed, rank, dim=problem.dim))


def sixteen_bits(rank: int) -> torch.Tensor:
    mine = torch.zeros(1, 1, dtype=torch.bfloat16, requires_grad=True)
    whole = parallel.gather(mine, rs.Layout(4, 4), gradient="summed")
    upstream = torch.full_like(whole, (256.0, 1.0, 1.0, -256.0)[rank])
    return torch.autograd.grad(whole, mine, upstream)[0]


def test_sums_of_sixteen_bit_gradients_are_rounded_once(run_ring: Any) -> None:
    # In bfloat16, 256 + 1 is 256.
    assert [grad.item() for grad in run_ring(4, sixteen_bits)] == [2.0] * 4


LENGTHS = (7, 0, 4)
"""Rows of each rank; the real ones are 1, 0 and 3."""


def some_losses() -> tuple[torch.Tensor, torch.Tensor]:
    losses = torch.full((11,), torch.nan, dtype=torch.float64)
    losses[[2, 7, 8, 10]] = torch.tensor([1.0, 2.0, 3.0, 6.0], dtype=torch.float64)
    return losses, ~losses.isnan()


def mean_on_a_ring(rank: int, gradients: Any) -> tuple[torch.Tensor, torch.Tensor]:
    losses, real = (x.split(LENGTHS)[rank] for x in some_losses())
    losses = losses.clone().requires_grad_()
    found = parallel.token_mean(losses, real, gradients=gradients)
    return found.detach(), torch.autograd.grad(found, losses)[0]


@pytest.mark.parametrize(("gradients", "factor"), [("mean", 3), ("sum", 1)])
def test_every_real_token_of_all_ranks_counts_alike(
    run_ring: Any, gradients: str, factor: int
) -> None:
    _, real = some_losses()
    parts = run_ring(3, mean_on_a_ring, gradients)
    # Not the mean of the ranks' means, which are 1 and 11 / 3.
    assert [value.item() for value, _ in parts] == [3.0] * 3
    found = torch.cat([grad for _, grad in parts])
    assert found.tolist() == [factor / 4 * each for each in real.tolist()]


def all_padding(rank: int) -> tuple[float, float]:
    losses = torch.ones(5, requires_grad=True)
    found = parallel.token_mean(losses, torch.zeros(5, dtype=torch.bool))
    return found.item(), torch.autograd.grad(found, losses)[0].abs().sum().item()


def test_a_ring_of_padding_has_no_loss_and_no_gradient(run_ring: Any) -> None:
    assert run_ring(2, all_padding) == [(0.0, 0.0)] * 2


def positions_on_a_mesh(rank: int, layout: rs.Layout, documents: Any) -> torch.Tensor:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "ring"))
    return parallel.position_ids(layout, mesh["ring"], documents=documents)


def test_positions_are_those_of_the_rows_within_their_documents(run_ring: Any) -> None:
    for layout in (rs.Layout(9, 2, sizes=(7, 2)), rs.Layout(rs.Grid(3, 3), 2, "snake")):
        for rank, found in enumerate(run_ring(4, positions_on_a_mesh, layout, None)):
            assert torch.equal(found, layout.positions(rank % 2))
    documents = rs.Documents.from_lengths([2, 0, 6, 1])
    found = run_ring(4, positions_on_a_mesh, rs.Layout(9, 2), documents)
    assert [each.tolist() for each in found[:2]] == [[0, 1, 0, 1, 2], [3, 4, 5, 0]]


def disagree(rank: int, field: str) -> str:
    x = torch.ones(2, 4, 3)
    options: dict[str, Any] = {"layout": rs.Layout(8, 2), "gradient": "summed"}
    if field == "layout":
        options["layout"] = rs.Layout(8 + rank, 2, sizes=(4 + rank, 4))
        x = torch.ones(2, 4 + rank, 3) if rank == 0 else x
    if field == "shape":
        x = torch.ones(2, 4, 3 + rank)
    if field == "dtype":
        x = x.to(torch.float64 if rank else torch.float32)
    if field == "dim":
        x, options["dim"] = torch.ones(4, 4, 4), rank
    if field == "gradient":
        options["gradient"] = ("own", "summed")[rank]
    if field == "requires_grad":
        x.requires_grad_(rank == 0)
    if field == "call":
        return told(lambda: (parallel.gather if rank else sharded_again)(x, **options))
    return told(lambda: parallel.gather(x, **options))


def sharded_again(x: torch.Tensor, layout: rs.Layout, gradient: str) -> torch.Tensor:
    return parallel.shard(torch.cat([x, x], 1), layout, gradient="gathered")


def told(call: Any) -> str:
    try:
        call()
    except RanksDisagree as error:
        return error.argument
    return "agreed"


@pytest.mark.parametrize(
    "field", ["layout", "shape", "dtype", "dim", "gradient", "requires_grad", "call"]
)
def test_ranks_that_gather_different_things_are_all_told_what(run_ring: Any, field: str) -> None:
    assert run_ring(2, disagree, field) == [field] * 2


def gather_with_the_dead(rank: int) -> tuple[str, int | None]:
    layout = rs.Layout(8, 2)
    x = torch.ones(1, 4)
    parallel.gather(x, layout)  # the ranks agree while both are there
    if rank == 1:
        os._exit(1)
    with pytest.raises(RingError) as refusal:
        parallel.gather(x, layout)
    return refusal.value.expected, refusal.value.rank


def test_a_rank_that_died_is_an_error_of_our_tree() -> None:
    with contextlib.closing(Ring(2)) as ring:
        (answer,) = ring.run(gather_with_the_dead, answers=1)
    assert answer == ("all 2 ranks of the group in an all-gather", 0)


def refused(rank: int) -> list[str]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "ring"))
    x, names = torch.ones(1, 8), []
    for call in (
        lambda: parallel.shard(x, rs.Layout(8, 2)),
        lambda: parallel.shard(x, rs.Layout(8, 4), mesh["ring"]),
        lambda: parallel.shard(x, rs.Layout(8), mesh["ring"]),
        lambda: parallel.shard(x, group=mesh),
        lambda: parallel.gather(x, rs.Layout(16, 2)),
        lambda: parallel.gather(x, rs.Layout(8, 2), mesh["ring"]),
        lambda: parallel.position_ids(rs.Layout(8, 2)),
        lambda: parallel.token_mean(x, group=mesh),
        lambda: parallel.gather(x.to("meta"), rs.Layout(32, 4)),
        lambda: parallel.token_mean(x.to("meta")),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            call()
        names.append(refusal.value.argument)
    return names


def test_layouts_groups_and_devices_that_do_not_fit_are_refused_by_name(run_ring: Any) -> None:
    expected = ["group"] * 5 + ["x"] + ["group"] * 2 + ["x.device", "losses.device"]
    assert run_ring(4, refused) == [expected] * 4


def moved(rank: int) -> tuple[int, int, int, int]:
    layout = rs.Layout(30, 3, sizes=(10, 5, 15))
    q = torch.randn(1, layout.sizes[rank], 2, 4, dtype=torch.float64, requires_grad=True)
    start = parallel.traffic()
    out = rs.attention(q, q, q, layout=layout, group=dist.group.WORLD)
    assert isinstance(out, torch.Tensor)
    forward = parallel.traffic() - start
    received = rs.last_run().bytes_received  # type: ignore[union-attr]
    out.sum().backward()
    both = parallel.traffic() - start
    return received, forward.bytes_received, forward.bytes_sent, both.bytes_received


def test_traffic_counts_what_attention_moved_forward_and_backward(run_ring: Any) -> None:
    row = 2 * (4 + 4) * 8
    for rank, (told_by_run, received, sent, both) in enumerate(run_ring(3, moved)):
        own = (10, 5, 15)[rank]
        assert received == told_by_run == (30 - own) * row
        assert sent == 2 * own * row
        # The rows again, and the gradients of those that it had sent.
        assert both - received == (30 - own) * row + 2 * own * row
