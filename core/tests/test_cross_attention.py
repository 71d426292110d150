"""Cross-attention: projections, padding of the context, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import ringspan as rs
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.errors import InvalidArgument
from ringspan.nn import CrossAttention
from torch._dynamo.utils import counters

pytestmark = pytest.mark.usefixtures("toy")


def literal(
    layer: CrossAttention, x: torch.Tensor, context: torch.Tensor, key_padding: torch.Tensor
) -> torch.Tensor:
    """Softmax over the real rows of the context, and of the sink where there is one."""
    B, Nk, H = x.shape[0], context.shape[1], layer.num_heads
    q = layer.q_proj(x).unflatten(-1, (H, -1))
    k = layer.k_proj(context).unflatten(-1, (layer.kv_heads, -1))
    v = layer.v_proj(context).unflatten(-1, (layer.kv_heads, -1))
    k, v = (part.repeat_interleave(H // layer.kv_heads, 2) for part in (k, v))
    scores = torch.einsum("bihd,bjhd->bhij", q, k) * layer.head_dim**-0.5
    scores = scores.masked_fill(~key_padding[:, None, None], -torch.inf)
    if layer.sink is not None:
        logit = layer.sink[:, None, None].expand(B, H, x.shape[1], 1)
        scores = torch.cat([scores, logit], -1)
    weights = scores.softmax(-1)[..., :Nk].nan_to_num(0.0)
    return layer.out_proj(torch.einsum("bhij,bjhe->bihe", weights, v).flatten(-2))


@given(
    N=st.integers(1, 9), Nk=st.integers(1, 9), kv_heads=st.sampled_from([1, 2, 4]), data=st.data()
)
def test_it_is_projections_around_attention_to_the_real_rows_of_the_context(
    N: int, Nk: int, kv_heads: int, data: st.DataObject
) -> None:
    padding = data.draw(st.lists(st.booleans(), min_size=2 * Nk, max_size=2 * Nk))
    key_padding = torch.tensor(padding).view(2, Nk)
    layer = CrossAttention(
        16,
        4,
        context_dim=6,
        kv_heads=kv_heads,
        value_head_dim=3,
        bias=data.draw(st.booleans()),
        sink=data.draw(st.booleans()),
        dtype=torch.float64,
    )
    if layer.sink is not None:
        torch.nn.init.normal_(layer.sink)
    x = torch.randn(2, N, 16, dtype=torch.float64)
    context = torch.randn(2, Nk, 6, dtype=torch.float64)
    found = layer(x, context, key_padding=key_padding)
    torch.testing.assert_close(found, literal(layer, x, context, key_padding))
    everyone = torch.ones_like(key_padding)
    torch.testing.assert_close(layer(x, context), literal(layer, x, context, everyone))


def test_names_in_the_state_dict_are_stable() -> None:
    names = {f"{p}_proj.{kind}" for p in ("q", "k", "v", "out") for kind in ("weight", "bias")}
    assert set(CrossAttention(16, 4, bias=True).state_dict()) == names
    assert set(CrossAttention(16, 4, bias=True, sink=True).state_dict()) == {*names, "sink"}


def test_a_module_prints_its_sizes() -> None:
    assert "16 from 6, heads=4/2" in repr(CrossAttention(16, 4, context_dim=6, kv_heads=2))


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("embed_dim", (15, 4), {}),
        ("embed_dim", (None, 4), {}),
        ("num_heads", (16, 0), {}),
        ("kv_heads", (16, 4), {"kv_heads": 3}),
        ("context_dim", (16, 4), {"context_dim": 0}),
        ("context_dim", (16, 4), {"context_dim": 6.0}),
        ("value_head_dim", (16, 4), {"value_head_dim": True}),
        ("bias", (16, 4), {"bias": None}),
        ("sink", (16, 4), {"sink": 0}),
        ("dropout_p", (16, 4), {"dropout_p": 1}),
    ],
)
def test_a_module_that_makes_no_sense_is_refused_by_name(
    argument: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        CrossAttention(*arguments, **options)
    assert refusal.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "x", "context"),
    [
        ("x", torch.randn(5, 16), torch.randn(2, 7, 6)),
        ("x", torch.randn(2, 5, 6), torch.randn(2, 7, 6)),
        ("context", torch.randn(2, 5, 16), torch.randn(2, 7, 16)),
        ("context", torch.randn(2, 5, 16), None),
        ("context", torch.randn(2, 5, 16), torch.randn(3, 7, 6)),
    ],
)
def test_inputs_of_another_shape_are_refused_by_name(argument: str, x: Any, context: Any) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        CrossAttention(16, 4, context_dim=6)(x, context)
    assert refusal.value.argument == argument


@pytest.mark.parametrize(
    "key_padding", [torch.ones(2, 5).bool(), torch.ones(7).bool(), torch.ones(2, 7), "all"]
)
def test_padding_that_is_not_the_contexts_is_refused_by_name(key_padding: Any) -> None:
    layer = CrossAttention(16, 4, context_dim=6)
    with pytest.raises(InvalidArgument) as refusal:
        layer(torch.randn(2, 5, 16), torch.randn(2, 7, 6), key_padding=key_padding)
    assert refusal.value.argument == "key_padding"


def test_a_sink_gets_the_gradient_of_the_literal_formula() -> None:
    layer = CrossAttention(8, 4, sink=True, dtype=torch.float64)
    assert layer.sink is not None
    torch.nn.init.normal_(layer.sink)
    x, context = torch.randn(2, 5, 8).double(), torch.randn(2, 7, 8).double()
    upstream = torch.randn(2, 5, 8).double()
    everyone = torch.ones(2, 7).bool()
    grads = [
        torch.autograd.grad(out, layer.sink, upstream)[0]
        for out in (layer(x, context), literal(layer, x, context, everyone))
    ]
    torch.testing.assert_close(*grads)


def test_dropout_acts_in_training_alone() -> None:
    layer = CrossAttention(16, 4, dropout_p=0.5)
    x, context = torch.randn(1, 5, 16), torch.randn(1, 9, 16)
    assert not torch.equal(layer(x, context), layer(x, context))
    layer.eval()
    assert torch.equal(layer(x, context), layer(x, context))


@pytest.mark.parametrize("Nk", [4, 9])
def test_every_query_has_a_dropout_mask_of_its_own(Nk: int) -> None:
    layer = CrossAttention(16, 4, dropout_p=0.5)
    x, context = torch.randn(1, 1, 16).expand(1, 4, 16), torch.randn(1, Nk, 16)
    for padding in (None, torch.ones(1, Nk).bool()):
        assert len(layer(x, context, key_padding=padding)[0].unique(dim=0)) == 4


def test_a_compiled_module_is_whole() -> None:
    torch._dynamo.reset()
    counters.clear()
    module = CrossAttention(16, 4, sink=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for Nk in (7, 9, 12):
        x, context = torch.randn(2, 5, 16), torch.randn(2, Nk, 16)
        key_padding = torch.rand(2, Nk) > 0.3
        out = compiled(x, context, key_padding=key_padding)
        torch.testing.assert_close(out, module(x, context, key_padding=key_padding))
    assert counters["stats"]["unique_graphs"] <= 2


def test_under_autocast_attention_runs_in_its_dtype() -> None:
    layer = CrossAttention(16, 4, sink=True)
    x, context = torch.randn(2, 5, 16), torch.randn(2, 7, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x, context)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), layer(x, context), atol=0.03, rtol=0.03)


def test_rs_has_the_module() -> None:
    assert rs.nn.CrossAttention is CrossAttention
