"""Virtual ranks: one process streams all shards through a device that holds two at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.catalogue import catalogue, configuration
from ringspan.errors import InvalidArgument, NoEligibleProvider, NotYetSupported
from ringspan.testing import assert_exact
from ringspan.testing.case import Case
from ringspan.testing.strategies import cases
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils.checkpoint import checkpoint

from tests.front_door import exact, poisoned
from tests.test_ring_modes import EVERYTHING, joined, layout_of, shapes

Shape = dict[str, Any]


def streamed(case: Case, shape: Shape, **given: Any) -> dict[str, Tensor]:
    """Output, lse and all gradients, by virtual ranks; the bytes are those foretold."""
    layout, options = layout_of(case, shape), case.arguments()
    options.pop("tokens", None)
    sink = options.pop("sink", None)
    order = torch.from_numpy(layout.order.copy())
    q, k, v, grad_out = (x[:, order] for x in case.inputs())
    leaves = {"grad_query": q, "grad_key": k, "grad_value": v, "grad_sink": sink}
    leaves = {name: x.detach().requires_grad_() for name, x in leaves.items() if x is not None}
    q, k, v = (leaves[name] for name in ("grad_query", "grad_key", "grad_value"))
    options |= {"pattern": case.pattern.built(rs), "sink": leaves.get("grad_sink")}
    options |= {"layout": layout, "communicator": "host", **given}
    out, lse = rs.attention(q, k, v, return_lse=True, **options)
    run = rs.last_run()
    assert run is not None
    grads = torch.autograd.grad(out, tuple(leaves.values()), grad_out)
    assert_foretold(run, rs.explain(q, k, v, **options))
    found = {"out": out.detach(), "lse": lse.detach(), **dict(zip(leaves, grads, strict=True))}
    return joined(layout, [found])


def assert_foretold(run: rs.LastRun, explained: rs.Explanation) -> None:
    assert explained.streamed is not None
    moved, back = explained.streamed.staged, run.backward
    assert (run.bytes_received, run.bytes_sent) == (moved.forward_up, moved.forward_down)
    if back is not None:
        assert (back.bytes_received, back.bytes_sent) == (moved.backward_up, moved.backward_down)


@settings(max_examples=120)
@given(
    cases(max_N=80),
    st.integers(1, 6),
    st.sampled_from((1, 64, 500, 2**20)),
    st.booleans(),
    st.data(),
)
def test_any_call_is_exact_on_virtual_ranks_of_any_layout(
    case: Case, world_size: int, message_bytes: int, poison: bool, data: st.DataObject
) -> None:
    # Queries of their own are for one shard; the layout says how tokens are stored.
    case = replace(case, positions=None, cross=None, stored=None)
    shape = data.draw(shapes(case, world_size))
    with rs.use(message_bytes=message_bytes):
        if poison:
            with poisoned():
                found = streamed(case, shape)
        else:
            found = streamed(case, shape)
    assert_exact(found, exact(case))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8])
@pytest.mark.parametrize("ordering", ["identity", "zigzag", "striped"])
@pytest.mark.parametrize("backend", ["manual", "auto"])
def test_all_modes_at_once_are_exact_over_any_number_of_shards(
    world_size: int, ordering: str, backend: str
) -> None:
    shape = {"world_size": world_size, "ordering": ordering}
    assert_exact(streamed(EVERYTHING, shape, backend=backend), exact(EVERYTHING))


def test_shards_may_be_empty() -> None:
    for sizes in ((0, 45, 0), (20, 0, 25), (0, 0, 45)):
        shape = {"world_size": 3, "sizes": sizes}
        assert_exact(streamed(EVERYTHING, shape), exact(EVERYTHING))


def test_two_runs_give_the_same_bits() -> None:
    shape = {"world_size": 4, "ordering": "striped"}
    first, second = (streamed(EVERYTHING, shape) for _ in range(2))
    for name, x in first.items():
        assert torch.equal(x, second[name]), name


def test_one_shard_gives_the_bits_of_a_call_without_shards() -> None:
    q, k, v, grad_out = problem(96)
    found = [
        torch.autograd.grad(rs.attention(q, k, v, **options), (q, k, v), grad_out)
        for options in ({"pattern": DILATED}, {"pattern": DILATED, "communicator": "host"})
    ]
    for alone, streamed in zip(*found, strict=True):
        assert torch.equal(alone, streamed)


DILATED = rs.Dilated((512, 2048, 8192), (1, 4, 16))


def problem(N: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """q, k, v, and an upstream gradient."""
    draw = torch.Generator().manual_seed(N)
    shape = (1, N, 2, 32)
    tensors = [torch.randn(shape, generator=draw).to(dtype) for _ in range(4)]
    return *(x.requires_grad_() for x in tensors[:3]), tensors[3]


def held(N: int, chunk: int, pattern: Any, dtype: torch.dtype = torch.float32) -> list[int]:
    """The most bytes on the device, forward and backward."""
    q, k, v, grad_out = problem(N, dtype)
    layout = rs.Layout(N, world_size=-(-N // chunk))
    out = rs.attention(q, k, v, pattern=pattern, layout=layout, communicator="host", causal=True)
    torch.autograd.grad(out, (q, k, v), grad_out)
    run = rs.last_run()
    assert run is not None
    assert run.backward is not None
    return [run.bytes_resident, run.backward.bytes_resident]


@pytest.mark.parametrize(
    "pattern", [DILATED, rs.Dense(window=(200, 0)), rs.Neighborhood(129)], ids=repr
)
def test_what_is_resident_is_bounded_by_the_chunk_and_not_by_the_length(pattern: Any) -> None:
    at_4096, at_16384 = (held(N, 1024, pattern) for N in (4096, 16_384))
    # Only which of its meetings a shard has last, while the next shard arrives, may differ.
    assert all(longer <= 1.1 * shorter for shorter, longer in zip(at_4096, at_16384, strict=True))
    halved = held(8192, 512, pattern)
    assert all(half < 0.7 * whole for whole, half in zip(at_4096, halved, strict=True))


def test_what_is_resident_is_a_small_multiple_of_a_shard() -> None:
    chunk = 2048
    rows = chunk * 2 * 32 * 4
    forward, backward = held(16384, chunk, DILATED)
    # Queries, keys and values of two shards, sums and a piece; backward also outputs and gradients.
    assert forward <= 12 * rows
    assert backward <= 24 * rows


@contextmanager
def all_memory() -> Iterator[list[int]]:
    """The most bytes of all tensors at once, kernels' own too, above those before."""
    found: list[int] = []
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        yield found
    events = trace.profiler.kineto_results.events()  # type: ignore[union-attr]
    alive = peak = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        alive += change
        peak = max(peak, alive)
    found.append(peak)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pattern", [DILATED, rs.Dense()], ids=repr)
def test_resident_bytes_are_what_a_profiler_sees(pattern: Any, dtype: torch.dtype) -> None:
    N, chunk = 8192, 1024
    q, k, v, grad_out = problem(N, dtype)
    options = {"layout": rs.Layout(N, N // chunk), "communicator": "host", "causal": True}
    rs.attention(q, k, v, pattern=pattern, **options)
    with all_memory() as forward:
        out = rs.attention(q, k, v, pattern=pattern, **options)
    run = rs.last_run()
    with all_memory() as backward:
        torch.autograd.grad(out, (q, k, v), grad_out)
    assert run is not None
    assert run.backward is not None
    # Host and device are one memory here: what lies where the caller's tensors do is not counted.
    lse = N * 2 * 4
    home = (out.nbytes + lse, N * 2 * 32 * 4 + k.nbytes + v.nbytes + lse)
    measured = [peak[0] - there for peak, there in zip((forward, backward), home, strict=True)]
    counted = [run.bytes_resident, run.backward.bytes_resident]
    for seen, said in zip(measured, counted, strict=True):
        # Above it, a kernel's scratch memory and what the host packs on its way.
        assert 0.95 * said <= seen <= 2 * said


def test_the_device_keeps_nothing_once_a_call_is_over() -> None:
    q, k, v, grad_out = problem(2048, torch.bfloat16)
    options = {"layout": rs.Layout(2048, 8), "communicator": "host", "pattern": DILATED}

    def train() -> None:
        torch.autograd.grad(rs.attention(q, k, v, **options), (q, k, v), grad_out)

    train()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        train()
    events = trace.profiler.kineto_results.events()  # type: ignore[union-attr]
    assert sum(event.nbytes() for event in events if event.name() == "[memory]") == 0


@contextmanager
def configured(file: Path, text: str) -> Iterator[None]:
    """This file's settings, as a process would find them that starts now."""
    file.write_text(text)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RINGSPAN_CONFIG", str(file))
        caches = (configuration, catalogue)
        for cache in caches:
            cache.cache_clear()
        try:
            yield
        finally:
            for cache in caches:
                cache.cache_clear()


def test_without_a_layout_shards_are_chunks_in_order(tmp_path: Path) -> None:
    q, k, v, _ = problem(100)
    with configured(tmp_path / "ringspan.toml", "[plugins.host]\nchunk = 30\n"):
        out = rs.attention(q, k, v, communicator="host")
        run = rs.last_run()
    assert run is not None
    assert run.world_size == 4
    torch.testing.assert_close(out, rs.attention(q, k, v))


def test_it_is_chosen_by_name_alone() -> None:
    q, k, v, _ = problem(64)

    def chosen() -> str | None:
        run = rs.last_run()
        assert run is not None
        found = run.decisions.get("communicator")
        return None if found is None else found.chosen

    rs.attention(q, k, v)
    assert chosen() is None
    with rs.use(communicator="host"):
        rs.attention(q, k, v, layout=rs.Layout(64, 2))
        assert chosen() == "host"
        rs.attention(q, k, v, communicator="auto")
        assert chosen() is None
    rs.attention(q, k, v, communicator=("isend", "host"))
    assert chosen() == "host"


def with_a_group(rank: int) -> list[str]:
    q = torch.ones(1, 8, 2, 4)
    answers = []
    for request in ("host", ("host", "isend")):
        try:
            rs.attention(q, q, q, group=dist.group.WORLD, communicator=request)
        except NoEligibleProvider as refusal:
            answers.append(str(refusal))
        else:
            run = rs.last_run()
            assert run is not None
            answers.append(run.decisions["communicator"].chosen)
    return answers


def test_a_process_group_is_refused_by_name(run_ring: Any) -> None:
    for refusal, chosen in run_ring(2, with_a_group):
        assert "virtual ranks of one process, that is group=None" in refusal
        assert chosen == "isend"


def with_a_group_of_one(rank: int) -> str:
    q = torch.ones(1, 8, 2, 4)
    with pytest.raises(InvalidArgument) as refusal:
        rs.attention(q, q, q, group=dist.group.WORLD, communicator="host")
    return refusal.value.argument


def test_a_group_of_one_process_is_refused_too(run_ring: Any) -> None:
    assert run_ring(1, with_a_group_of_one) == ["group"]


@pytest.mark.parametrize("function", [rs.attention, rs.explain])
def test_what_virtual_ranks_cannot_do_is_refused_before_any_work(function: Any) -> None:
    q, k, v, _ = problem(64)
    with pytest.raises(NotYetSupported) as refusal:
        function(q, k, v, communicator="host", query_positions=range(64))
    assert refusal.value.argument == "query_positions"
    with pytest.raises(NotYetSupported, match="of another sequence"):
        function(q[:, :9], k, v, communicator="host")
    with pytest.raises(InvalidArgument, match="communicator='host'") as missing:
        function(q, k, v, layout=rs.Layout(64, 2))
    assert missing.value.argument == "group"
    with pytest.raises(InvalidArgument) as elsewhere:
        function(q, k.to("meta"), v.to("meta"), communicator="host")
    assert elsewhere.value.argument == "k.device"


def test_an_explanation_says_what_is_staged_and_what_is_resident() -> None:
    inputs = rs.Inputs(N=2**20, heads=2, head_dim=64, dtype="bfloat16")
    report = rs.explain(inputs, pattern=DILATED, communicator="host")
    said = report.as_dict()["streamed"]
    assert (said["shards"], said["shard_tokens"]) == (16, 65_536)
    rows = 2**20 * 2 * 64 * 2
    assert said["staged"]["forward_down"] == rows + 2**20 * 2 * 4
    # No branch crosses a shard: nothing is staged twice.
    assert said["staged"]["forward_up"] == 3 * rows
    assert "16 shards of up to 65536 tokens in host memory" in str(report)
    assert rs.explain(inputs, pattern=DILATED).streamed is None


@pytest.mark.parametrize("pattern", [DILATED, rs.Dense(), rs.Neighborhood(129)], ids=repr)
@pytest.mark.parametrize("world_size", [1, 4])
def test_the_foretold_resident_bytes_are_about_right(pattern: Any, world_size: int) -> None:
    N = 4096
    q, k, v, _ = problem(N)
    layout = rs.Layout(N, world_size)
    report = rs.explain(q, k, v, pattern=pattern, causal=True, layout=layout, communicator="host")
    assert report.streamed is not None
    ratio = report.streamed.staged.resident / max(held(N, N // world_size, pattern))
    assert 0.7 <= ratio <= 1.8


def test_gradients_are_contiguous_whatever_the_inputs_strides() -> None:
    leaves = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in problem(64)]
    q, k, v, grad_out = (x.requires_grad_() for x in leaves)
    out = rs.attention(q, k, v, layout=rs.Layout(64, 2), communicator="host")
    grads = torch.ops.ringspan.attention_backward(  # as the compiler calls it, without autograd
        *(grad_out, *(x.detach() for x in (q, k, v)), *[None] * 4, *saved_by(out))
    )
    assert all(grad.is_contiguous() for grad in grads[:3])


def saved_by(out: Tensor) -> tuple[Any, ...]:
    """Output, lse, ticket, text and length that a forward pass kept for its backward pass."""
    kept = out.grad_fn
    assert kept is not None
    return *kept.saved_tensors[-3:], kept.call, kept.N  # type: ignore[attr-defined]


def test_a_checkpointed_and_a_compiled_call_stream_too() -> None:
    q, k, v, grad_out = problem(96)
    layout = rs.Layout(96, 3)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Any:
        return rs.attention(q, k, v, pattern=DILATED, layout=layout, communicator="host")

    expected = torch.autograd.grad(attend(q, k, v), (q, k, v), grad_out)
    recomputed = checkpoint(attend, q, k, v, use_reentrant=False)
    compiled = torch.compile(attend, backend="aot_eager", fullgraph=True)(q, k, v)
    for out in (recomputed, compiled):
        grads = torch.autograd.grad(out, (q, k, v), grad_out)
        assert all(torch.equal(a, b) for a, b in zip(grads, expected, strict=True))


def test_a_layer_with_rotary_positions_streams_what_it_would_compute_whole() -> None:
    torch.manual_seed(0)
    layer = rs.nn.SelfAttention(32, 4, DILATED, causal=True, rotary=True)
    layout = rs.Layout(96, 3, ordering="striped")
    order = torch.from_numpy(layout.order.copy())
    x = torch.randn(1, 96, 32)
    with rs.use(communicator="host"):
        stored = layer(x[:, order], layout=layout)
    torch.testing.assert_close(stored, layer(x)[:, order])


def test_the_gradients_of_a_run_that_nobody_holds_are_not_kept() -> None:
    q, k, v, grad_out = problem(64)
    first = rs.attention(q, k, v, communicator="host", layout=rs.Layout(64, 2))
    run = rs.last_run()
    second = rs.attention(q, k, v)
    assert run is not None
    torch.autograd.grad(first, (q, k, v), grad_out)
    torch.autograd.grad(second, (q, k, v), grad_out)
    assert run.backward is not None
    assert run.backward.bytes_resident > 0
    latest = rs.last_run()
    assert latest is not None
    assert latest.backward is not None
    assert latest.backward.bytes_received == 0
