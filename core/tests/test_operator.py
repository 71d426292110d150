"""One node for autograd, torch.compile and checkpointing."""

from __future__ import annotations

import copy
import gc
import pickle
import threading
import time

import pytest
import ringspan as rs
import torch
from ringspan.engine import operator, workspace
from ringspan.engine.call import Call
from ringspan.errors import NotYetSupported, UnknownProvider
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

pytestmark = pytest.mark.usefixtures("toy")

PATTERN = rs.Dilated((4, 9), (1, 3))
NOTHING_ELSE = (None, None, None, None)


def _inputs(N: int = 13, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    shapes = ((2, N, 4, 6), (2, N, 2, 6), (2, N, 2, 5))
    return tuple(torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)


def test_the_operator_passes_opcheck() -> None:
    call = Call(PATTERN, causal=True)
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        arguments = (*_inputs(dtype=dtype), *NOTHING_ELSE, None, call.text, 13)
        torch.library.opcheck(operator.attention, arguments)


def test_the_backward_operator_passes_opcheck() -> None:
    q, k, v = (x.detach() for x in _inputs())
    text = Call(PATTERN, causal=True).text
    out, lse, ticket = operator.attention(q, k, v, *NOTHING_ELSE, None, text, 13)
    arguments = (torch.randn_like(out), q, k, v, *NOTHING_ELSE, out, lse, ticket, text, 13)
    torch.library.opcheck(operator.attention_backward, arguments)


@pytest.mark.parametrize("pattern", [rs.Dense(), PATTERN, rs.Dilated((5,), (5,), "blocked")])
@pytest.mark.parametrize("causal", [False, True])
def test_gradients_are_the_derivative(pattern: rs.Dense | rs.Dilated, causal: bool) -> None:
    assert torch.autograd.gradcheck(
        lambda *qkv: rs.attention(*qkv, pattern=pattern, causal=causal), _inputs(7)
    )


def test_a_second_derivative_is_refused() -> None:
    q, k, v = _inputs()
    out = rs.attention(q, k, v, pattern=PATTERN)
    (grad,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(NotYetSupported, match="first derivatives"):
        grad.sum().backward()


def test_the_lse_says_that_it_has_no_gradient_when_asked() -> None:
    q, k, v = _inputs()
    out, lse = rs.attention(q, k, v, pattern=PATTERN, return_lse=True)
    with pytest.raises(NotYetSupported, match="log-sum-exp"):
        (out.sum() + lse.sum()).backward()
    out, lse = rs.attention(q, k, v, pattern=PATTERN, return_lse=True)
    (out.sum() + lse.detach().sum()).backward()


def test_a_compiled_function_may_return_the_lse() -> None:
    torch._dynamo.reset()
    q = torch.randn(1, 10, 2, 4, requires_grad=True)

    def function(q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rs.attention(q, q, q, pattern=PATTERN, return_lse=True)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(q), function(q), strict=True):
        torch.testing.assert_close(ours, theirs)
    compiled(q)[0].sum().backward()


def test_forward_mode_derivatives_are_refused_and_not_zero() -> None:
    q = torch.randn(1, 8, 2, 4)
    with pytest.raises(NotYetSupported, match="forward-mode"):
        torch.func.jvp(lambda a: rs.attention(a, q, q), (q,), (torch.ones_like(q),))


def test_layers_of_different_patterns_compile_as_one_model() -> None:
    torch._dynamo.reset()
    model = torch.nn.Sequential(
        rs.nn.DilatedSelfAttention(16, 4, (4, 8), (1, 2)),
        rs.nn.DilatedSelfAttention(16, 4, (6, 12, 18), (1, 2, 3)),
    )
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for N in (20, 31):
        x = torch.randn(1, N, 16)
        torch.testing.assert_close(compiled(x), model(x))


def test_one_compiled_function_serves_patterns_and_grids_that_change() -> None:
    torch._dynamo.reset()

    def function(q: torch.Tensor, pattern: rs.Dilated, tokens: rs.Grid) -> torch.Tensor:
        return rs.attention(q, q, q, pattern=pattern, scale=0.5, tokens=tokens)

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    for length, rate, rows in ((4, 1, 3), (6, 2, 5), (9, 3, 7)):
        q = torch.randn(1, 4 * rows, 2, 4)
        arguments = (q, rs.Dilated((length,), (rate,)), rs.Grid(rows, 4))
        assert torch.equal(compiled(*arguments), function(*arguments))


def test_one_compiled_function_serves_layouts_that_change() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, layout: rs.attention(q, q, q, layout=layout), fullgraph=True, backend="eager"
    )
    for N in (6, 9, 14):
        q = torch.randn(1, N, 2, 4)
        assert torch.equal(compiled(q, rs.Layout(N)), rs.attention(q, q, q))


def test_no_gradient_is_prepared_for_where_none_is_needed() -> None:
    with torch.no_grad():
        rs.attention(*_inputs(), pattern=PATTERN)
    problem = rs.last_run().decisions["backend (full)"].problem  # type: ignore[union-attr]
    assert not problem.needs_backward  # type: ignore[attr-defined]


def test_a_compiled_module_is_whole_and_does_not_recompile_per_length() -> None:
    torch._dynamo.reset()
    counters.clear()
    module = rs.nn.DilatedSelfAttention(16, 4, (4, 8), (1, 2), kv_heads=2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for N in (5, 6, 7, 12, 29, 64):
        x = torch.randn(2, N, 16, requires_grad=True)
        upstream = torch.randn(2, N, 16)
        out, expected = compiled(x), module(x)
        torch.testing.assert_close(out, expected)
        grads = [torch.autograd.grad(y, x, upstream)[0] for y in (out, expected)]
        torch.testing.assert_close(*grads)
    # One graph for the first length, and one for all others.
    assert counters["stats"]["unique_graphs"] <= 2


def test_inductor_compiles_it_whole() -> None:
    torch._dynamo.reset()
    module = rs.nn.DilatedSelfAttention(16, 4, (4, 8), (1, 2))
    compiled = torch.compile(module, fullgraph=True)
    x = torch.randn(2, 11, 16, requires_grad=True)
    out, expected = compiled(x), module(x)
    torch.testing.assert_close(out, expected)
    upstream = torch.randn_like(out)
    torch.testing.assert_close(*(torch.autograd.grad(y, x, upstream)[0] for y in (out, expected)))


def test_a_pattern_may_be_built_inside_a_compiled_function() -> None:
    torch._dynamo.reset()

    def function(q: torch.Tensor) -> torch.Tensor:
        return rs.attention(q, q, q, pattern=rs.Dilated((4, 8), (1, 2)), causal=True)

    q = torch.randn(1, 10, 2, 4)
    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert torch.equal(compiled(q), function(q))


def test_a_context_is_read_when_a_compiled_function_runs() -> None:
    torch._dynamo.reset()
    compiled = torch.compile(lambda q: rs.attention(q, q, q), fullgraph=True, backend="eager")
    q = torch.randn(1, 6, 2, 4)
    compiled(q)
    with rs.use(backend=["toy"]):
        compiled(q)
    assert rs.last_run().decisions["backend (full)"].requested == ("toy",)  # type: ignore[union-attr]
    assert rs.last_run().decisions["backend (full)"].source == "context"  # type: ignore[union-attr]


def test_activations_can_be_recomputed() -> None:
    q, k, v = _inputs()
    upstream = torch.randn(2, 13, 4, 5, dtype=torch.float64)

    def function(*qkv: torch.Tensor) -> torch.Tensor:
        out = rs.attention(*qkv, pattern=PATTERN, causal=True)
        assert isinstance(out, torch.Tensor)
        return out

    plain = torch.autograd.grad(function(q, k, v), (q, k, v), upstream)
    again = torch.autograd.grad(
        checkpoint(function, q, k, v, use_reentrant=False), (q, k, v), upstream
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


def test_autograd_through_part_of_the_inputs_is_enough() -> None:
    q, k, v = _inputs()
    out = rs.attention(q.detach(), k, v.detach(), pattern=PATTERN)
    (grad,) = torch.autograd.grad(out, k, torch.ones_like(out))
    assert grad.shape == k.shape


def test_the_backward_uses_what_the_forward_chose_outside_its_context() -> None:
    q, k, v = _inputs()
    out = rs.attention(q, k, v, pattern=PATTERN)
    with rs.use(backend="nobody"):
        with pytest.raises(UnknownProvider):
            rs.attention(q, k, v, pattern=PATTERN)
        (grad,) = torch.autograd.grad(out, q, torch.ones_like(out))
    assert grad.isfinite().all()


def test_the_text_of_a_call_names_no_length() -> None:
    assert "1234" not in Call(PATTERN, layout=rs.Layout(1234, 2)).text


@pytest.mark.parametrize(
    "call",
    [
        Call(rs.Dense()),
        Call(rs.Dilated((4, 8), (1, 2), "blocked", along=rs.Along("hilbert", fold=True)), True),
        Call(PATTERN, scale=0.5, tokens=rs.Grid(3, 4), layout=rs.Layout(rs.Grid(3, 4), 2)),
        Call(PATTERN, layout=rs.Layout(12, 2, "snake", (1.0, 2.0)), group="g", backend=("a", "b")),
        Call(PATTERN, layout=rs.Layout(12, 2, sizes=(5, 7)), needs_backward=False),
    ],
)
def test_a_call_survives_its_text(call: Call) -> None:
    assert Call.from_text(call.text, 12) == call


def test_coordinates_survive_the_text_as_long_as_they_live() -> None:
    points = rs.Coordinates([[0, 0], [3, 4]])
    assert Call.from_text(Call(PATTERN, tokens=points).text, 2).tokens is points


def test_copies_of_coordinates_live_on_their_own() -> None:
    for copied in (copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))):
        original = rs.Layout(rs.Coordinates([[0, 0], [3, 4]]))
        twin = copied(original)
        assert twin == original
        del original
        gc.collect()
        q = torch.randn(1, 2, 2, 4)
        assert torch.equal(rs.attention(q, q, q, layout=twin), rs.attention(q, q, q))


def test_sums_of_16_bit_calls_reuse_memory_and_stay_apart() -> None:
    pattern = rs.Dilated((64, 2048), (1, 4))
    # 32 MiB in float32, from where on memory is kept.
    q = torch.randn(1, 16384, 8, 64).bfloat16()
    first = rs.attention(q, q, q, pattern=pattern, backend="toy")
    kept = first.clone()
    second = rs.attention(q + 1, q, q, pattern=pattern, backend="toy")
    assert torch.equal(first, kept)
    assert not torch.equal(first, second)
    assert torch.equal(rs.attention(q, q, q, pattern=pattern, backend="toy"), kept)


def test_a_compiled_checkpoint_recomputes_the_same_dropout() -> None:
    def block(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return rs.attention(q, k, v, pattern=PATTERN, dropout_p=0.5)

    def call(*qkv: torch.Tensor) -> torch.Tensor:
        return checkpoint(block, *qkv, use_reentrant=False)

    q, k, v = _inputs()
    torch._dynamo.reset()
    out = torch.compile(call, backend="aot_eager", fullgraph=True)(q, k, v)
    grad_out = torch.randn_like(out)
    (grad_value,) = torch.autograd.grad(out, v, grad_out)
    # The output is linear in the values: whatever was dropped, both must agree.
    torch.testing.assert_close((out * grad_out).sum(), (v * grad_value).sum())


def test_two_compiled_calls_draw_masks_of_their_own() -> None:
    @torch.compile(backend="aot_eager", fullgraph=True)
    def twice(*qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return rs.attention(*qkv, dropout_p=0.5), rs.attention(*qkv, dropout_p=0.5)

    first, second = twice(*_inputs())
    assert not torch.equal(first, second)


def test_packed_documents_drop_what_each_drops_alone() -> None:
    q, k, v = _inputs()
    packed = rs.attention(q, k, v, documents=[0, 5, 13], dropout_p=0.5, seed=3)
    alone = [
        rs.attention(q[:, some], k[:, some], v[:, some], dropout_p=0.5, seed=3)
        for some in (slice(0, 5), slice(5, 13))
    ]
    torch.testing.assert_close(packed, torch.cat(alone, dim=1))


def test_wide_sums_kept_from_inference_serve_training() -> None:
    with torch.inference_mode():
        block = workspace.borrow((2**23,), torch.float32, torch.device("cpu"))
    assert not block.is_inference()


def test_threads_may_call_at_once_while_others_collect_garbage() -> None:
    q = torch.randn(1, 8, 1, 2)
    failures: list[BaseException] = []

    def call(number: int) -> None:
        try:
            for turn in range(300):
                rs.attention(q, q, q, pattern=rs.Dilated((2, 4), (1, 2)), scale=number + turn / 1e4)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the test shows it
            failures.append(error)

    def yielding(*_: object) -> None:
        time.sleep(0)

    before = gc.get_threshold()
    gc.callbacks.append(yielding)
    gc.set_threshold(50)
    try:
        threads = [threading.Thread(target=call, args=(number,)) for number in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(yielding)
    assert failures == []
