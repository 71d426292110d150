"""What travels between ranks, in which memory: parts, reuse, dtype of gradients, checksums."""

from __future__ import annotations

from typing import Any

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from ringspan.engine.ring.exchanges import connections
from ringspan.errors import KernelFault, MessageCorrupted, RanksDisagree, RingError
from ringspan.testing import assert_exact, yardstick
from ringspan.testing.multiplicity import dense
from torch import Tensor

N, HEADS, KV_HEADS, HEAD_DIM = 48, 6, 3, 8
ROW = 2 * HEAD_DIM


def inputs(dtype: torch.dtype) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    shapes = ((1, N, heads, HEAD_DIM) for heads in (HEADS, KV_HEADS, KV_HEADS, HEADS))
    return tuple(torch.randn(shape, generator=generator).to(dtype) for shape in shapes)


def train(rank: int, dtype: torch.dtype, settings: dict[str, Any], steps: int = 1) -> Any:
    """Outputs and gradients; allocations, posts and bytes of each step's two passes."""
    layout = rs.Layout(N, dist.get_world_size())
    q, k, v, grad_out = (layout.shard(x, rank) for x in inputs(dtype))
    for x in (q, k, v):
        x.requires_grad_()
    noted = []
    for _ in range(steps):
        with rs.use(**settings):
            out, lse = rs.attention(
                q, k, v, causal=True, return_lse=True, layout=layout, group=dist.group.WORLD
            )
        grads = torch.autograd.grad(out, (q, k, v), grad_out)
        (connection,) = connections(dist.group.WORLD)
        exchange = connection.exchange
        noted.append((connection.buffers.allocations, exchange.bytes_sent, exchange.bytes_received))
    return (out.detach(), lse, *grads), noted


def joined(parts: list[Any]) -> dict[str, Tensor]:
    names = ("out", "lse", "grad_query", "grad_key", "grad_value")
    whole = zip(*(tensors for tensors, _ in parts), strict=True)
    return {
        name: torch.cat(shards, 2 if name == "lse" else 1)
        for name, shards in zip(names, whole, strict=True)
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 16, 32, 40])
def test_a_step_that_travels_in_parts_gives_the_same_numbers(
    run_ring: Any, rows: int, dtype: torch.dtype
) -> None:
    settings = {"message_bytes": rows * ROW * dtype.itemsize}
    parts = run_ring(3, train, dtype, settings)
    q, k, v, grad_out = inputs(dtype)
    exact = yardstick(q, k, v, dense(N, causal=True), grad_out=grad_out)
    assert_exact(joined(parts), exact)


def messages(rank: int, message_bytes: int) -> tuple[int, int]:
    """How many messages a forward pass posts, and the bytes of the largest."""
    layout = rs.Layout(N, dist.get_world_size())
    q, k, v, _ = (layout.shard(x, rank) for x in inputs(torch.float32))
    with rs.use(message_bytes=message_bytes):
        rs.attention(q, k, v, layout=layout, group=dist.group.WORLD)
    (connection,) = connections(dist.group.WORLD)
    exchange, posted, largest = connection.exchange, 0, 0
    post = exchange.post

    def counting(sends: Any, receives: Any) -> Any:
        nonlocal posted, largest
        posted += len(sends)
        largest = max(largest, *(message.tensor.nbytes for message in sends))
        return post(sends, receives)

    exchange.post = counting  # type: ignore[method-assign]
    try:
        with rs.use(message_bytes=message_bytes):
            rs.attention(q, k, v, layout=layout, group=dist.group.WORLD)
    finally:
        exchange.post = post  # type: ignore[method-assign]
    return posted, largest


def test_no_message_is_larger_than_asked_but_for_one_head(run_ring: Any) -> None:
    head = N // 3 * ROW * 4
    for asked, count, largest in ((3 * head, 2, 3), (2 * head, 4, 2), (head, 6, 1), (1, 6, 1)):
        assert run_ring(3, messages, asked) == [(count, largest * head)] * 3


def test_a_second_step_allocates_nothing_new(run_ring: Any) -> None:
    for _, noted in run_ring(3, train, torch.bfloat16, {}, 3):
        first, *later = (allocations for allocations, _, _ in noted)
        assert first > 0
        assert later == [first, first]


@pytest.mark.parametrize(("wire", "size"), [("wide", 4), ("input", 2)])
def test_gradients_return_in_the_dtype_of_the_wire_and_no_byte_is_too_many(
    run_ring: Any, wire: str, size: int
) -> None:
    parts = run_ring(3, train, torch.bfloat16, {"gradient_wire": wire}, 2)
    shard = N // 3 * KV_HEADS * ROW
    for rank, (_, noted) in enumerate(parts):
        (_, sent, received), (_, sent_then, received_then) = noted
        # Causal: a rank needs the shards before it, and is needed by those after it.
        before, after = rank * shard, (2 - rank) * shard
        assert received_then - received == before * 2 * 2 + after * size
        assert sent_then - sent == after * 2 * 2 + before * size
    q, k, v, grad_out = inputs(torch.bfloat16)
    exact = yardstick(q, k, v, dense(N, causal=True), grad_out=grad_out)
    assert_exact(joined(parts), exact)


@pytest.mark.parametrize("wire", ["wide", "input"])
def test_explain_knows_the_bytes_of_both_passes(run_ring: Any, wire: str) -> None:
    parts = run_ring(3, train, torch.bfloat16, {"gradient_wire": wire}, 2)
    described = rs.Inputs(N, HEADS, HEAD_DIM, kv_heads=KV_HEADS, dtype="bfloat16")
    with rs.use(gradient_wire=wire):
        ranks = rs.explain(described, causal=True, layout=rs.Layout(N, 3)).ranks
    for (_, noted), report in zip(parts, ranks, strict=True):
        (_, sent, received), (_, sent_then, received_then) = noted
        cost = report.cost
        assert received_then - received == cost.bytes_received + cost.backward_bytes_received
        assert sent_then - sent == cost.bytes_sent + cost.backward_bytes_sent


def test_a_checked_message_carries_eight_bytes_more_and_the_same_numbers(run_ring: Any) -> None:
    parts = run_ring(2, train, torch.float32, {"debug": True})
    q, k, v, grad_out = inputs(torch.float32)
    exact = yardstick(q, k, v, dense(N, causal=True), grad_out=grad_out)
    assert_exact(joined(parts), exact)


def corrupt(rank: int, place: int) -> str:
    layout = rs.Layout(N, 2)
    group = dist.new_group([0, 1])
    q, k, v, _ = (layout.shard(x, rank) for x in inputs(torch.float32))
    call = {"layout": layout, "group": group, "scale": 0.3}
    with rs.use(debug=True):
        rs.attention(q, k, v, **call)
        (connection,) = connections(group)
        post = connection.exchange.post

        def flipping(sends: Any, receives: Any) -> Any:
            if rank == 1:
                for message in sends:
                    message.tensor[place] ^= 4
            return post(sends, receives)

        connection.exchange.post = flipping  # type: ignore[method-assign]
        try:
            rs.attention(q, k, v, **call)
        except MessageCorrupted as error:
            return f"{error.rank} {error.peer} {error.step} {error.direction}"
    return "fine"


@pytest.mark.parametrize("place", [0, 8, 300, -1])
def test_a_bit_that_flips_on_the_way_is_found_in_debug_mode(run_ring: Any, place: int) -> None:
    assert run_ring(2, corrupt, place) == ["0 1 1 receive", "fine"]


def differ(rank: int, name: str, value: Any) -> str:
    layout = rs.Layout(N, 2)
    q, k, v, _ = (layout.shard(x, rank) for x in inputs(torch.float32))
    try:
        with rs.use(**({name: value} if rank else {})):
            rs.attention(q, k, v, layout=layout, group=dist.group.WORLD, scale=0.9)
    except RanksDisagree as error:
        return error.argument
    return "fine"


@pytest.mark.parametrize(
    ("name", "value"), [("debug", True), ("gradient_wire", "input"), ("message_bytes", 64)]
)
def test_ranks_whose_settings_differ_are_told_before_anything_travels(
    run_ring: Any, name: str, value: Any
) -> None:
    assert run_ring(2, differ, name, value) == [name, name]


class BrokenError(RuntimeError):
    """A kernel's own failure."""


def break_down(rank: int) -> tuple[str, int | None, str]:
    """Rank 1's first kernel raises; two calls, of which some rank gets through the first."""
    from datetime import timedelta

    from ringspan_manual.backend import Manual

    group = dist.new_group([0, 1, 2], timeout=timedelta(seconds=8))
    layout = rs.Layout(N, 3)
    q, k, v, _ = (layout.shard(x, rank) for x in inputs(torch.float32))

    def breaking(*args: Any, **options: Any) -> Any:
        raise BrokenError("out of luck")

    rs.attention(q, k, v, backend="manual")  # probed while it still works
    forward = Manual.forward
    if rank == 1:
        Manual.forward = breaking  # type: ignore[method-assign]
    try:
        for _ in range(2):
            rs.attention(q, k, v, layout=layout, group=group, backend="manual")
    except (KernelFault, RingError) as error:
        found = type(error).__name__, getattr(error, "peer", None), str(error)
    finally:
        Manual.forward = forward  # type: ignore[method-assign]
    with pytest.raises(RingError, match="an earlier call failed"):
        rs.attention(q, k, v, layout=layout, group=group, backend="manual")
    return found


def test_when_a_kernel_fails_on_one_rank_the_others_say_where_and_why(run_ring: Any) -> None:
    first, second, third = run_ring(3, break_down)
    assert second[0] == "KernelFault"
    assert "BrokenError: out of luck" in second[2]
    for kind, peer, text in (first, third):
        assert (kind, peer) == ("RingTimeout", 1), text
        assert "BrokenError: out of luck" in text


def go_on_alone(rank: int) -> str:
    """Rank 0 takes one forward pass more, where rank 1 goes on to its backward pass."""
    from datetime import timedelta

    group = dist.new_group([0, 1], timeout=timedelta(seconds=5))
    layout = rs.Layout(N, 2)
    q, k, v, grad_out = (layout.shard(x, rank) for x in inputs(torch.float32))
    for x in (q, k, v):
        x.requires_grad_()
    options = {"layout": layout, "group": group}
    try:
        torch.autograd.grad(rs.attention(q, k, v, **options), (q, k, v), grad_out)
        out = rs.attention(q, k, v, **options)
        if rank == 0:
            rs.attention(q, k, v, **options)
        torch.autograd.grad(out, (q, k, v), grad_out)
    except RingError as error:
        return f"{type(error).__name__}: {error.argument}"
    return "went through"


def test_a_forward_pass_never_takes_the_rows_of_a_backward_pass(run_ring: Any) -> None:
    assert run_ring(2, go_on_alone) == ["RanksDisagree: pass"] * 2


def ask_differently(rank: int, what: str) -> str:
    from datetime import timedelta

    group = dist.new_group([0, 1], timeout=timedelta(seconds=20))
    layout = rs.Layout(N, 2)
    q, k, v, _ = (layout.shard(x, rank) for x in inputs(torch.float32))
    options: dict[str, Any] = {"layout": layout, "group": group, "backend": "manual"}
    if what == "dropout_p":
        options["dropout_p"] = 0.5 * rank
    if what == "layout given" and rank:
        del options["layout"]
    if what == "seed given":
        options |= {"dropout_p": 0.5, "seed": 3 if rank else None}
    try:
        rs.attention(q, k, v, **options)
    except RanksDisagree as error:
        return error.argument
    return "went through"


@pytest.mark.parametrize("what", ["dropout_p", "layout given", "seed given"])
def test_no_rank_asks_for_a_number_that_the_others_do_not_give(run_ring: Any, what: str) -> None:
    assert run_ring(2, ask_differently, what) == [what, what]


def test_a_checksum_moves_no_row_to_where_kernels_compute_otherwise(run_ring: Any) -> None:
    plain, checked = (
        run_ring(3, train, torch.float32, {"debug": debug}) for debug in (False, True)
    )
    for (found, _), (expected, _) in zip(checked, plain, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


def call_twice(rank: int) -> list[bool]:
    layouts = [rs.Layout(n, 2, sizes=(n, 0)) for n in (8, 4)]
    runs, outs = [], []
    for layout in layouts:
        q = torch.randn(1, layout.sizes[rank], 2, 4, requires_grad=True)
        outs.append(rs.attention(q, q, q, layout=layout, group=dist.group.WORLD))
        runs.append(rs.last_run())
    outs[0].sum().backward()
    return [run.backward is not None for run in runs]  # type: ignore[union-attr]


def test_a_backward_pass_is_told_with_its_own_call_where_a_rank_has_no_rows(run_ring: Any) -> None:
    assert run_ring(2, call_twice) == [[True, False], [True, False]]
