"""Rings of real processes equal one process, and receive exactly the bytes that they must."""

from __future__ import annotations

from typing import Any

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.errors import InvalidArgument, RanksDisagree, RingError, RingTimeout
from ringspan.testing import assert_exact, yardstick
from ringspan.testing.multiplicity import dense
from ringspan.testing.strategies import Configuration, configurations

NAMES = ("out", "lse", "grad_query", "grad_key", "grad_value")
ORDERINGS = (None, "zigzag", "striped", "hilbert", "gilbert", "snake", "tiles", "morton")
WORLD_SIZES = (1, 2, 3, 4)


def layout_of(configuration: Configuration, shape: dict[str, Any]) -> rs.Layout:
    tokens = rs.Coordinates([[i // 7, i % 7] for i in range(configuration.N)])
    return rs.Layout(tokens, **shape)


def pattern_of(configuration: Configuration, is_dense: bool) -> rs.Dense | rs.Dilated:
    if is_dense:
        return rs.Dense()
    return rs.Dilated(
        configuration.segment_lengths,
        configuration.dilation_rates,
        head_offsets=configuration.head_offsets,
    )


def attend(
    rank: int, configuration: Configuration, shape: dict[str, Any], is_dense: bool
) -> tuple[dict[str, torch.Tensor], int, int]:
    """This rank's outputs and gradients, the bytes it received, and those that its plan says."""
    layout = layout_of(configuration, shape)
    q, k, v, grad_out = (layout.shard(x, rank) for x in configuration.inputs())
    for x in (q, k, v):
        x.requires_grad_()
    options = {
        "pattern": pattern_of(configuration, is_dense),
        "causal": configuration.causal,
        "layout": layout,
        "group": dist.group.WORLD,
    }
    out, lse = rs.attention(q, k, v, return_lse=True, **options)
    received = rs.last_run().bytes_received  # type: ignore[union-attr]
    grads = torch.autograd.grad(out, (q, k, v), grad_out)
    planned = rs.explain(q, k, v, **options).ranks[rank].cost.bytes_received
    return dict(zip(NAMES, (out.detach(), lse, *grads), strict=True)), received, planned


def joined(layout: rs.Layout, parts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """All ranks' rows in order of position."""
    positions = torch.cat([layout.positions(rank) for rank in range(layout.world_size)])
    whole = {}
    for name in NAMES:
        dim = 2 if name == "lse" else 1
        stored = torch.cat([part[name] for part in parts], dim)
        whole[name] = torch.empty_like(stored).index_copy_(dim, positions, stored)
    return whole


def bytes_by_formula(
    configuration: Configuration, multiplicity: torch.Tensor, layout: rs.Layout, rank: int
) -> int:
    """Rows of others that some query of this rank sees, per key/value head, times their bytes."""
    group = configuration.heads // configuration.kv_heads
    seen = multiplicity.expand(configuration.heads, -1, -1)[::group] > 0
    mine = layout.positions(rank)
    rows = 0
    for other in range(layout.world_size):
        if other != rank:
            rows += int(seen[:, mine][:, :, layout.positions(other)].any(dim=1).sum())
    both = configuration.head_dim + configuration.value_head_dim
    return configuration.batch * rows * both * configuration.dtype.itemsize


@st.composite
def shapes(draw: st.DrawFn, N: int, world_size: int) -> dict[str, Any]:
    """Arguments of a layout: even, weighted, or any sizes, empty shards included."""
    shape: dict[str, Any] = {"world_size": world_size, "ordering": draw(st.sampled_from(ORDERINGS))}
    kind = draw(st.sampled_from(("even", "weights", "sizes")))
    if kind == "weights":
        shape["weights"] = tuple(float(1 + rank) for rank in range(world_size))
    if kind == "sizes":
        count = world_size - 1
        cuts = sorted(draw(st.lists(st.integers(0, N), min_size=count, max_size=count)))
        shape["sizes"] = tuple(b - a for a, b in zip((0, *cuts), (*cuts, N), strict=True))
    return shape


def check_ring(
    run_ring: Any, configuration: Configuration, shape: dict[str, Any], is_dense: bool
) -> None:
    layout = layout_of(configuration, shape)
    multiplicity = (
        dense(configuration.N, causal=configuration.causal)
        if is_dense
        else configuration.multiplicity()
    )
    answers = run_ring(layout.world_size, attend, configuration, shape, is_dense)
    inputs = configuration.inputs()
    exact = yardstick(*inputs[:3], multiplicity, grad_out=inputs[3])
    assert_exact(joined(layout, [parts for parts, _, _ in answers]), exact)
    for rank, (_, received, planned) in enumerate(answers):
        expected = bytes_by_formula(configuration, multiplicity, layout, rank)
        assert (received, planned) == (expected, expected)


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@settings(max_examples=40)
@given(data=st.data(), configuration=configurations(max_N=96), is_dense=st.booleans())
def test_a_ring_of_any_size_and_layout_is_exact_and_moves_no_byte_too_many(
    run_ring: Any,
    world_size: int,
    data: st.DataObject,
    configuration: Configuration,
    is_dense: bool,
) -> None:
    shape = data.draw(shapes(configuration.N, world_size))
    check_ring(run_ring, configuration, shape, is_dense)


@settings(max_examples=500)
@given(configuration=configurations(max_N=64))
def test_five_hundred_configurations_on_a_ring_of_three(
    run_ring: Any, configuration: Configuration
) -> None:
    check_ring(run_ring, configuration, {"world_size": 3}, False)


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_all_rows_on_one_rank_and_none_on_the_others(run_ring: Any, world_size: int) -> None:
    configuration = Configuration(
        N=20, segment_lengths=(8, 20), dilation_rates=(2, 3), heads=4, kv_heads=2, causal=True
    )
    for owner in range(world_size):
        sizes = tuple(20 if rank == owner else 0 for rank in range(world_size))
        check_ring(run_ring, configuration, {"world_size": world_size, "sizes": sizes}, False)


@pytest.mark.parametrize("is_dense", [True, False])
@pytest.mark.parametrize("ordering", ["striped", "hilbert"])
def test_staircases_are_cut_by_rows_and_share_keys(
    run_ring: Any, ordering: str, is_dense: bool
) -> None:
    configuration = Configuration(
        N=700, segment_lengths=(350, 700), dilation_rates=(1, 2), heads=2, kv_heads=1, causal=True
    )
    shape = {"world_size": 2, "ordering": ordering, "weights": (1.0, 2.0)}
    check_ring(run_ring, configuration, shape, is_dense)


def attend_without_a_layout(rank: int, lengths: tuple[int, ...]) -> torch.Tensor:
    x = torch.arange(sum(lengths) * 8, dtype=torch.float64).sin().reshape(1, -1, 2, 4)
    mine = x.split(lengths, dim=1)[rank]
    out = rs.attention(mine, mine, mine, causal=True, group=dist.group.WORLD)
    assert isinstance(out, torch.Tensor)
    return out


def test_contiguous_shards_need_no_layout_even_when_one_rank_s_length_changes(
    run_ring: Any,
) -> None:
    for lengths in ((4, 4, 4), (4, 5, 4), (4, 4, 4), (0, 3, 9)):
        parts = run_ring(3, attend_without_a_layout, lengths)
        x = torch.arange(sum(lengths) * 8, dtype=torch.float64).sin().reshape(1, -1, 2, 4)
        torch.testing.assert_close(torch.cat(parts, 1), rs.attention(x, x, x, causal=True))


def attend_on_a_mesh(rank: int) -> torch.Tensor:
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "ring"))
    x = torch.arange(10 * 8, dtype=torch.float64).cos().reshape(1, -1, 2, 4)
    layout = rs.Layout(10, 2)
    mine = layout.shard(x, mesh["ring"].get_local_rank())
    out = rs.attention(mine, mine, mine, layout=layout, group=mesh["ring"])
    return layout.gather(out, mesh["ring"])


def test_one_dimension_of_a_mesh_is_a_group_and_gather_restores_the_order(run_ring: Any) -> None:
    x = torch.arange(10 * 8, dtype=torch.float64).cos().reshape(1, -1, 2, 4)
    expected = rs.attention(x, x, x)
    for out in run_ring(4, attend_on_a_mesh):
        torch.testing.assert_close(out, expected)


def gather_uneven(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    layout = rs.Layout(rs.Grid(3, 5), 4, "hilbert", sizes=(7, 0, 3, 5))
    x = torch.arange(15.0)[None, :, None]
    mine = layout.shard(x).requires_grad_()
    whole = layout.gather(mine)
    (grad,) = torch.autograd.grad(whole, mine, x.square())
    return whole.detach(), grad - layout.shard(x.square())


def test_gather_restores_uneven_shards_in_another_order_and_returns_their_gradient(
    run_ring: Any,
) -> None:
    for whole, difference in run_ring(4, gather_uneven):
        assert torch.equal(whole, torch.arange(15.0)[None, :, None])
        assert (difference == 0).all()


def compiled_ring(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    module = rs.nn.DilatedSelfAttention(16, 4, (6, 12), (1, 3))
    layout = rs.Layout(12, 2)
    x = layout.shard(torch.randn(1, 12, 16), rank)
    compiled = torch.compile(module, backend="aot_eager")
    options = {"layout": layout, "group": dist.group.WORLD}
    return compiled(x, **options).detach(), module(x, **options).detach()


def test_a_compiled_module_runs_on_a_ring(run_ring: Any) -> None:
    for compiled, eager in run_ring(2, compiled_ring):
        torch.testing.assert_close(compiled, eager)


def disagree(rank: int, field: str) -> str:
    N = 8
    q = torch.randn(1, N, 2, 4)
    options: dict[str, Any] = {"layout": rs.Layout(2 * N, 2), "group": dist.group.WORLD}
    if field == "causal":
        options["causal"] = rank == 0
    if field == "pattern":
        options["pattern"] = rs.Dilated((4 + rank,), (1,))
    if field == "scale":
        options["scale"] = 1.0 + rank
    if field == "dtype":
        q = q.double() if rank else q
    if field == "batch":
        q = q.expand(1 + rank, -1, -1, -1)
    try:
        rs.attention(q, q, q, **options)
    except RanksDisagree as error:
        return f"{error.argument}: {error}"
    return "agreed"


@pytest.mark.parametrize("field", ["causal", "pattern", "scale", "dtype", "batch"])
def test_ranks_that_disagree_all_get_an_error_naming_ranks_and_field(
    run_ring: Any, field: str
) -> None:
    for rank, answer in enumerate(run_ring(2, disagree, field)):
        assert answer.startswith(f"{field}:")
        assert f"rank {rank} has" in answer
        assert f"on rank {1 - rank}" in answer


def count_store_and_collectives(rank: int) -> list[int]:
    import torch.distributed.distributed_c10d as c10d

    calls = [0]
    store = c10d._get_process_group_store(dist.group.WORLD)
    originals = {name: getattr(dist, name) for name in ("all_gather", "all_reduce", "broadcast")}

    def counted(original: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls[0] += 1
            return original(*args, **options)

        return call

    keys = []
    for name, original in originals.items():
        setattr(dist, name, counted(original))
    try:
        for _ in range(3):
            q = torch.randn(1, 6, 2, 4, requires_grad=True)
            out = rs.attention(
                q, q, q, layout=rs.Layout(12, 2), group=dist.group.WORLD, scale=0.123
            )
            out.sum().backward()
            keys.append(store.num_keys())
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)
    return [calls[0], keys[-1] - keys[0]]


def test_a_known_call_adds_no_collective_and_no_store_access(run_ring: Any) -> None:
    assert run_ring(2, count_store_and_collectives) == [[0, 0], [0, 0]]


def wrong_rows(rank: int) -> str:
    q = torch.randn(1, 5, 2, 4)
    try:
        rs.attention(q, q, q, layout=rs.Layout(12, 2), group=dist.group.WORLD)
    except InvalidArgument as error:
        return str(error)
    return ""


def test_rows_that_do_not_fit_the_layout_are_refused_on_the_rank_that_has_them(
    run_ring: Any,
) -> None:
    for rank, answer in enumerate(run_ring(2, wrong_rows)):
        assert f"as rank {rank} holds" in answer


def retry_after_a_mistake(rank: int) -> list[str]:
    """Rank 0 makes a mistake of its own, then both call differently, then alike."""
    q = torch.randn(1, 8, 2, 4)
    answers = []
    for causal in (3, True, False) if rank == 0 else (False, False):
        if causal is False and answers:
            # Not before the other has seen the disagreement: it would take this call for the same.
            dist.barrier()
        try:
            rs.attention(
                q, q, q, causal=causal, scale=0.77, layout=rs.Layout(16, 2), group=dist.group.WORLD
            )
            answers.append("ran")
        except (InvalidArgument, RanksDisagree) as error:
            answers.append(type(error).__name__)
    return answers


def test_ranks_find_together_again_after_one_made_a_mistake(run_ring: Any) -> None:
    assert run_ring(2, retry_after_a_mistake) == [
        ["InvalidArgument", "RanksDisagree", "ran"],
        ["RanksDisagree", "ran"],
    ]


def enter_different_known_calls(rank: int) -> list[str]:
    """In a group of its own, since a disagreement in known calls ends a group."""
    import datetime

    group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=4))
    answers = []
    for N in (64, 160, 64 if rank else 160):
        layout = rs.Layout(N, 2)
        q = torch.randn(1, N // 2, 2, 4)
        try:
            rs.attention(q, q, q, layout=layout, group=group)
            answers.append("ran")
        except RingError as error:
            answers.append(f"{type(error).__name__}: {error.argument}")
    return answers


def test_ranks_that_enter_different_known_calls_get_errors_and_no_wrong_rows(
    run_ring: Any,
) -> None:
    for answers in run_ring(2, enter_different_known_calls):
        assert answers == ["ran", "ran", "RanksDisagree: layout"]


def wait_alone(rank: int) -> tuple[str, float]:
    import datetime
    import time

    group = dist.new_group([0, 1], timeout=datetime.timedelta(seconds=3))
    if rank == 1:
        return "", 0.0
    start = time.monotonic()
    q = torch.randn(1, 4, 2, 4)
    try:
        rs.attention(q, q, q, layout=rs.Layout(8, 2), group=group)
    except RingTimeout as error:
        return f"{error}, said by {error.rank} of {error.peer}", time.monotonic() - start
    return "ran", 0.0


def test_a_rank_that_is_left_alone_says_so_within_its_group_s_timeout(run_ring: Any) -> None:
    message, waited = run_ring(2, wait_alone)[0]
    assert "nothing from rank 1" in message
    assert message.endswith("said by 0 of 1")
    assert waited < 30


def gather_differently(rank: int) -> str:
    layout = rs.Layout(12, 2)
    x = torch.zeros(1, 6, 3 + rank)
    try:
        layout.gather(x)
    except RanksDisagree as error:
        return error.argument
    return "gathered"


def test_ranks_that_gather_rows_of_other_shapes_are_told(run_ring: Any) -> None:
    assert run_ring(2, gather_differently) == ["shape", "shape"]
