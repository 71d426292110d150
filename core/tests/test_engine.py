"""The engine's loop: what is posted when, what kernels are handed, and what they may return."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan import Dense, Dilated, Layout
from ringspan.contracts import Exchange, Grads, MaskCase, Message, Pending, TileOutput, Work
from ringspan.engine import execute
from ringspan.engine.kernels import Kernels, Saved
from ringspan.engine.merge import merge_
from ringspan.engine.ring.buffers import Buffers
from ringspan.engine.ring.messages import Channel, KeyValue, Ring
from ringspan.engine.ring.wire import Wire
from ringspan.errors import BrokenContract
from ringspan.plan.schedule import make_plan
from ringspan.testing.toy import Toy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor


class _Recording(Exchange):
    """Notes what happens; what it receives is zeros."""

    def __init__(self, rank: int, world_size: int, events: list[str]) -> None:
        self.rank, self.world_size, self.events = rank, world_size, events
        self.tags: list[int] = []

    def post(self, sends: Sequence[Message], receives: Sequence[Message]) -> Pending:
        (tag,) = {message.tag for message in (*sends, *receives)}
        self.tags.append(tag)
        name = f"{'grads' if tag % 4 == 2 else 'rows'} {tag % (4 * self.world_size) // 4}"
        self.events.append(f"post {name}")
        for message in receives:
            message.tensor.zero_()
        events = self.events

        class Wait(Pending):
            def wait(self) -> None:
                events.append(f"wait {name}")

        return Wait()


@dataclass
class _Choice:
    """Stands for the decisions: one backend for everything."""

    used: Any
    events: list[str] = field(default_factory=list)

    takes_branches = only_branches = whole = False
    gathers = merges = False

    def backend(self, work: Work) -> Any:
        return self.used

    def ragged(self, mask: MaskCase) -> bool:
        return False


@dataclass
class _Chosen:
    """Stands for what runs: launches as they are."""

    choice: _Choice

    def run(self, name: str, what: str, launch: Any, *inputs: Any, look: Any = None) -> Any:
        return launch(self.choice.used)


class _Noting(Toy):
    def __init__(self, events: list[str]) -> None:
        self.events = events

    def forward(self, *inputs: Any, **options: Any) -> TileOutput:
        self.events.append("compute")
        return super().forward(*inputs, **options)

    def backward(self, *inputs: Any, **options: Any) -> Grads:
        self.events.append("compute")
        return super().backward(*inputs, **options)


def _ring_of(
    rank: int, world_size: int, call: int = 5, *, backward: bool = False
) -> tuple[Any, Kernels, KeyValue, Ring, list[str]]:
    events: list[str] = []
    layout = Layout(4 * world_size, world_size)
    plan = make_plan(Dense(), causal=False, kv_heads=1, layout=layout, rank=rank)
    kernels = Kernels(_Chosen(_Choice(_Noting(events))), 0.5, plan)  # type: ignore[arg-type]
    local = KeyValue(torch.randn(1, 4, 1, 2), torch.randn(1, 4, 1, 2))
    exchange = _Recording(rank, world_size, events)
    channel = Channel(exchange, Buffers(torch.device("cpu")), Wire(), 17, call, backward)
    return plan, kernels, local, Ring(channel, plan, local), events


def test_the_next_rows_are_on_their_way_before_the_current_ones_are_computed() -> None:
    plan, kernels, local, ring, events = _ring_of(1, 3)
    execute.forward(plan, kernels, torch.randn(1, 4, 1, 2), local, None, ring)
    assert events == [
        "post rows 1",
        "compute",
        "wait rows 1",
        "post rows 2",
        "compute",
        "wait rows 2",
        "compute",
    ]


def test_gradients_ride_behind_the_work_that_follows_them_and_own_rows_come_last() -> None:
    plan, kernels, local, ring, events = _ring_of(1, 3, backward=True)
    x = torch.randn(1, 4, 1, 2)
    execute.backward(plan, kernels, Saved(x, x, local, x, torch.zeros(1, 1, 4)), ring)
    assert events == [
        "post rows 1",
        "wait rows 1",
        "post rows 2",
        "compute",
        "post grads 1",
        "wait rows 2",
        "compute",
        "wait grads 1",
        "post grads 2",
        "compute",
        "wait grads 2",
    ]


def test_calls_passes_steps_and_directions_have_tags_of_their_own() -> None:
    tags: list[int] = []
    x = torch.randn(1, 4, 1, 2)
    for call in (5, 6):
        for backward in (False, True):
            plan, kernels, local, ring, _ = _ring_of(0, 4, call, backward=backward)
            if backward:
                saved = Saved(x, x, local, x, torch.zeros(1, 1, 4))
                execute.backward(plan, kernels, saved, ring)
            else:
                execute.forward(plan, kernels, x, local, None, ring)
            tags += ring._channel.exchange.tags  # type: ignore[attr-defined]
    assert len(tags) == len(set(tags)) == 2 * 3 * 3


def _run(backend: Toy) -> tuple[Tensor, ...]:
    layout = Layout(12)
    plan = make_plan(Dilated((4, 12), (1, 3)), causal=True, kv_heads=2, layout=layout, rank=0)
    q, k, v = torch.randn(3, 1, 12, 2, 4).unbind()
    kernels = Kernels(_Chosen(_Choice(backend)), 0.5, plan)  # type: ignore[arg-type]
    out, lse = execute.forward(plan, kernels, q, KeyValue(k, v), None, None)
    return execute.backward(plan, kernels, Saved(out, q, KeyValue(k, v), out, lse), None)


def test_kernels_that_take_no_strides_get_contiguous_tensors() -> None:
    class Dense(Toy):
        capabilities = replace(Toy.capabilities, strided=False)

        def forward(self, *inputs: Tensor, **options: Any) -> TileOutput:
            assert all(x.is_contiguous() for x in inputs)
            return super().forward(*inputs, **options)

        def backward(self, *inputs: Tensor, **options: Any) -> Grads:
            assert all(x.is_contiguous() for x in inputs)
            return super().backward(*inputs, **options)

    _run(Dense())


def test_kernels_that_take_strides_get_views_without_copies() -> None:
    seen = []

    class Strided(Toy):
        def forward(self, *inputs: Tensor, **options: Any) -> TileOutput:
            seen.append({x.untyped_storage().data_ptr() for x in inputs})
            return super().forward(*inputs, **options)

    layout = Layout(16)
    plan = make_plan(Dilated((8, 16), (2, 4)), causal=False, kv_heads=4, layout=layout, rank=0)
    x = torch.randn(1, 16, 4, 8)
    kernels = Kernels(_Chosen(_Choice(Strided())), 0.5, plan)  # type: ignore[arg-type]
    execute.forward(plan, kernels, x, KeyValue(x, x), None, None)
    assert seen == [{x.untyped_storage().data_ptr()}] * len(plan.steps[0].work)


@pytest.mark.parametrize("fault", ["out shape", "out dtype", "lse shape", "lse dtype", "grads"])
def test_a_kernel_s_result_of_the_wrong_kind_is_refused_by_name(fault: str) -> None:
    class Wrong(Toy):
        def forward(self, *inputs: Tensor, **options: Any) -> TileOutput:
            out, lse = super().forward(*inputs, **options)
            wrong = {
                "out shape": (out[:, :1], lse),
                "out dtype": (out.half(), lse),
                "lse shape": (out, lse.transpose(1, 2)),
                "lse dtype": (out, lse.half()),
            }
            return TileOutput(*wrong.get(fault, (out, lse)))

        def backward(self, *inputs: Tensor, **options: Any) -> Grads:
            grads = super().backward(*inputs, **options)
            return grads._replace(value=grads.value[..., :1]) if fault == "grads" else grads

    with pytest.raises(BrokenContract, match="toy"):
        _run(Wrong())


@given(st.integers(0, 10_000), st.floats(-90, 90), st.booleans(), st.booleans())
def test_merging_two_pieces_is_the_softmax_of_both(
    seed: int, gap: float, first_empty: bool, second_empty: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    outs = torch.randn(2, 1, 1, 3, 1, 1, 4, generator=generator, dtype=torch.float64)
    lses = torch.randn(2, 1, 1, 3, 1, 1, 1, generator=generator, dtype=torch.float64)
    lses[1] += gap
    for index, empty in enumerate((first_empty, second_empty)):
        if empty:
            lses[index], outs[index] = -torch.inf, 0.0
    Z = lses.exp().sum(0)
    expected = (outs * lses.exp()).sum(0) / torch.where(Z == 0, 1.0, Z)
    out, lse = outs[0].clone(), lses[0].clone()
    merge_(out, lse, outs[1], lses[1])
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, Z.log())
