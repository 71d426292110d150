"""Self-attention: projections, rotary embedding by position, and what is refused."""

from __future__ import annotations

import cmath
from typing import Any

import pytest
import ringspan as rs
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.contracts.documents import Documents
from ringspan.engine.call import Call
from ringspan.errors import InvalidArgument
from ringspan.nn import DilatedSelfAttention, RotaryEmbedding, SelfAttention
from ringspan.nn.positions import row_positions
from torch._dynamo.utils import counters

pytestmark = pytest.mark.usefixtures("toy")


def test_rotary_embedding_is_a_complex_rotation_by_position() -> None:
    x = torch.randn(2, 9, 3, 8, dtype=torch.float64)
    positions = torch.tensor([0, 1, 5, 2, 100, 7, 3, 3, 12345])
    pairs = torch.complex(x[..., :4], x[..., 4:])
    frequency = 10000.0 ** (-torch.arange(4, dtype=torch.float64) / 4)
    turned = pairs * torch.polar(
        torch.ones(9, 1, 4, dtype=torch.float64), (positions[:, None] * frequency)[:, None]
    )
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    torch.testing.assert_close(RotaryEmbedding(8)(x, positions), expected)


def test_scores_depend_on_distance_alone() -> None:
    rotary = RotaryEmbedding(8)
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    scores = [
        (rotary(q, torch.tensor([i])) * rotary(k, torch.tensor([i - 3]))).sum() for i in (3, 50)
    ]
    torch.testing.assert_close(*scores)


def test_sixteen_bit_inputs_get_angles_of_full_precision() -> None:
    x = torch.ones(1, 1, 1, 8, dtype=torch.bfloat16)
    far = torch.tensor([100_003])
    wide = RotaryEmbedding(8)(x.double(), far)
    assert (RotaryEmbedding(8)(x, far).double() - wide).abs().max() < 0.02


@pytest.mark.parametrize("position", [10**6, 2**24 + 1])
def test_angles_are_exact_at_far_positions(position: int) -> None:
    x = torch.randn(1, 1, 1, 8)
    pair = torch.complex(x[..., :4].double(), x[..., 4:].double())
    turned = pair * torch.tensor([cmath.rect(1, position * 10000.0 ** (-c / 4)) for c in range(4)])
    expected = torch.cat([turned.real, turned.imag], dim=-1).float()
    rotated = RotaryEmbedding(8)(x, torch.tensor([position]))
    torch.testing.assert_close(rotated, expected, rtol=0, atol=1e-6)


def test_the_module_is_projections_around_attention() -> None:
    layer = DilatedSelfAttention(24, 6, (5, 20), (1, 3), kv_heads=2, rotary=False, bias=True)
    x = torch.randn(2, 20, 24)
    q, k, v = (
        projection(x).unflatten(-1, (-1, 4))
        for projection in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    out = rs.attention(q, k, v, pattern=rs.Dilated((5, 20), (1, 3)), causal=True)
    torch.testing.assert_close(layer(x), layer.out_proj(out.flatten(-2)))


def test_the_dilated_module_is_self_attention_over_its_pattern() -> None:
    dilated = DilatedSelfAttention(24, 6, (5, 20), (1, 3), kv_heads=2, bias=True)
    general = SelfAttention(24, 6, rs.Dilated((5, 20), (1, 3)), kv_heads=2, bias=True)
    general.load_state_dict(dilated.state_dict())
    x = torch.randn(2, 20, 24)
    assert torch.equal(general(x), dilated(x))


def test_values_may_have_a_head_dim_of_their_own() -> None:
    layer = SelfAttention(16, 4, rs.Dense(), kv_heads=2, value_head_dim=3, rotary=False)
    x = torch.randn(2, 7, 16)
    q, k, v = layer.project(x)
    assert v.shape == (2, 7, 2, 3)
    expected = layer.finish(rs.attention(q, k, v, causal=True))
    torch.testing.assert_close(layer(x), expected)


def test_projecting_and_finishing_make_up_the_module() -> None:
    layer = SelfAttention(16, 4, rs.Dense(), causal=False)
    x = torch.randn(2, 9, 16)
    out = rs.attention(*layer.project(x, torch.arange(9)))
    assert torch.equal(layer(x), layer.finish(out))
    with pytest.raises(InvalidArgument, match=r"^positions"):
        layer.project(x)


def test_a_causal_module_never_looks_ahead() -> None:
    layer = DilatedSelfAttention(16, 4, (5, 20), (1, 3))
    x = torch.randn(1, 20, 16)
    changed = x.clone()
    changed[:, 12:] = torch.randn(1, 8, 16)
    assert torch.equal(layer(x)[:, :12], layer(changed)[:, :12])


def test_names_in_the_state_dict_are_stable() -> None:
    layer = DilatedSelfAttention(16, 4, (5,), (1,), bias=True)
    names = {f"{p}_proj.{kind}" for p in ("q", "k", "v", "out") for kind in ("weight", "bias")}
    assert set(layer.state_dict()) == names


def test_positions_come_from_the_layout() -> None:
    layer = DilatedSelfAttention(16, 4, (4, 12), (1, 3))
    x = torch.randn(1, 12, 16)
    weighted = rs.Layout(12, 1)
    torch.testing.assert_close(layer(x, layout=weighted), layer(x))


@pytest.mark.parametrize("layout", [None, rs.Layout(10, 3)])
def test_positions_restart_at_each_document(layout: rs.Layout | None) -> None:
    documents = Documents.from_lengths([3, 0, 5, 2])
    found = [
        row_positions(
            Call(rs.Dense(), layout=layout),
            10,
            rank,
            rows=10 if layout is None else layout.sizes[rank],
            lengths=documents.tensor,
            device=torch.device("cpu"),
        )
        for rank in range(1 if layout is None else layout.world_size)
    ]
    assert torch.cat(found).tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1]


def test_a_compiled_module_is_whole_with_a_layout() -> None:
    torch._dynamo.reset()
    counters.clear()
    module = SelfAttention(16, 4, rs.Dilated((4, 8), (1, 2)), kv_heads=2)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for N in (5, 6, 12, 29):
        x = torch.randn(2, N, 16, requires_grad=True)
        upstream = torch.randn(2, N, 16)
        out, expected = compiled(x, layout=rs.Layout(N)), module(x, layout=rs.Layout(N))
        torch.testing.assert_close(out, expected)
        grads = [torch.autograd.grad(y, x, upstream)[0] for y in (out, expected)]
        torch.testing.assert_close(*grads)
    # One graph for the first length, and one for all others.
    assert counters["stats"]["unique_graphs"] <= 2


@st.composite
def packed(draw: st.DrawFn) -> Documents:
    return Documents(draw(st.lists(st.integers(0, 9), min_size=1, max_size=5)))


@given(
    documents=packed(),
    pattern=st.sampled_from([rs.Dense(), rs.Dense(window=(2, 0)), rs.Dilated((3, 6), (1, 2))]),
    causal=st.booleans(),
)
def test_packed_documents_equal_each_document_alone(
    documents: Documents, pattern: rs.Dense | rs.Dilated, causal: bool
) -> None:
    layer = SelfAttention(16, 4, pattern, kv_heads=2, causal=causal, sink=True, dtype=torch.float64)
    x = torch.randn(2, documents.N, 16, dtype=torch.float64)
    alone = [layer(part) for part in x.split(documents.lengths.tolist(), 1)]
    expected = torch.cat(alone, 1)
    torch.testing.assert_close(layer(x, documents=documents), expected)
    cumulative = torch.tensor([0, *documents.lengths.cumsum()])
    torch.testing.assert_close(layer(x, documents=cumulative), expected)
    layout = rs.Layout(documents.N)
    torch.testing.assert_close(layer(x, documents=documents, layout=layout), expected)


@pytest.mark.parametrize("rotary", [True, False])
def test_padding_after_the_real_tokens_changes_nothing_for_them(rotary: bool) -> None:
    layer = SelfAttention(16, 4, rs.Dilated((4, 12), (1, 3)), causal=False, rotary=rotary)
    x = torch.randn(2, 12, 16)
    key_padding = torch.arange(12) < torch.tensor([[12], [8]])
    out = layer(x, key_padding=key_padding)
    torch.testing.assert_close(out[:1], layer(x[:1]))
    torch.testing.assert_close(out[1:, :8], layer(x[1:, :8]))
    assert not out[1, 8:].any()


def test_a_sink_takes_weight_from_the_keys_and_learns() -> None:
    layer = SelfAttention(16, 4, rs.Dense(), sink=True)
    plain = SelfAttention(16, 4, rs.Dense())
    plain.load_state_dict({n: w for n, w in layer.state_dict().items() if n != "sink"})
    x = torch.randn(1, 7, 16)
    assert layer.sink is not None
    assert layer.sink.tolist() == [0.0] * 4
    with torch.no_grad():
        layer.sink.fill_(-200.0)
    torch.testing.assert_close(layer(x), plain(x))
    with torch.no_grad():
        layer.sink.fill_(0.5)
    q, k, v = layer.project(x, torch.arange(7))
    expected = layer.finish(rs.attention(q, k, v, causal=True, sink=torch.full((4,), 0.5)))
    out = layer(x)
    torch.testing.assert_close(out, expected)
    out.square().sum().backward()
    assert layer.sink.grad is not None
    assert layer.sink.grad.all()


def test_dropout_acts_in_training_alone_and_follows_torchs_generator() -> None:
    layer = SelfAttention(16, 4, rs.Dense(), dropout_p=0.5)
    x = torch.randn(1, 9, 16)
    torch.manual_seed(0)
    first, second = layer(x), layer(x)
    torch.manual_seed(0)
    assert torch.equal(layer(x), first)
    assert not torch.equal(first, second)
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_under_autocast_attention_runs_in_its_dtype() -> None:
    layer = SelfAttention(16, 4, rs.Dense(), kv_heads=2, sink=True)
    x = torch.randn(2, 11, 16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
        q, k, v = layer.project(x, torch.arange(11))
    assert {part.dtype for part in (out, q, k, v)} == {torch.bfloat16}
    torch.testing.assert_close(out.float(), layer(x), atol=0.03, rtol=0.03)
    out.float().sum().backward()
    assert {p.grad.dtype for p in (x, *layer.parameters())} == {torch.float32}  # type: ignore[union-attr]


def test_a_compiled_module_is_whole_with_documents() -> None:
    torch._dynamo.reset()
    counters.clear()
    module = SelfAttention(16, 4, rs.Dilated((4, 8), (1, 2)), sink=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for N in (5, 6, 12, 29):
        x, documents = torch.randn(2, N, 16), Documents([2, N - 2])
        torch.testing.assert_close(compiled(x, documents=documents), module(x, documents=documents))
    assert counters["stats"]["unique_graphs"] <= 2


class Everything:
    """The simplest cache: all tokens so far, queries too, attended anew at every step."""

    def __init__(self, pattern: rs.Dense | rs.Dilated) -> None:
        self.pattern = pattern
        self.rows: list[tuple[torch.Tensor, ...]] = []

    @property
    def length(self) -> int:
        return sum(q.shape[1] for q, _, _ in self.rows)

    def attend(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        sink: torch.Tensor | None = None,
    ) -> torch.Tensor:
        self.rows.append((query, key, value))
        q, k, v = (torch.cat(parts, 1) for parts in zip(*self.rows, strict=True))
        out = rs.attention(q, k, v, pattern=self.pattern, causal=True, sink=sink)
        assert isinstance(out, torch.Tensor)
        return out[:, out.shape[1] - query.shape[1] :]


@pytest.mark.parametrize("rotary", [True, False])
def test_stepping_through_a_cache_equals_the_whole_forward(rotary: bool) -> None:
    layer = SelfAttention(16, 4, rs.Dilated((4, 12), (1, 3)), kv_heads=2, rotary=rotary)
    x = torch.randn(2, 11, 16)
    cache = Everything(layer.pattern)  # type: ignore[arg-type]
    parts = [layer(part, cache=cache) for part in x.split([6, 1, 0, 1, 3], 1)]
    torch.testing.assert_close(torch.cat(parts, 1), layer(x))


@pytest.mark.parametrize(
    ("argument", "layer", "options"),
    [
        ("cache", SelfAttention(16, 4, rs.Dense(), causal=False), {}),
        ("cache", SelfAttention(16, 4, rs.Dense(), dropout_p=0.5), {}),
        ("cache", SelfAttention(16, 4, rs.Dilated((4,), (1,))), {}),
        ("layout", SelfAttention(16, 4, rs.Dense()), {"layout": rs.Layout(8)}),
        ("tokens", SelfAttention(16, 4, rs.Dense()), {"tokens": rs.Grid(2, 4)}),
        ("documents", SelfAttention(16, 4, rs.Dense()), {"documents": Documents([8])}),
        ("key_padding", SelfAttention(16, 4, rs.Dense()), {"key_padding": torch.ones(1, 8).bool()}),
    ],
)
def test_a_cache_that_does_not_fit_is_refused_by_name(
    argument: str, layer: SelfAttention, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        layer(torch.randn(1, 8, 16), cache=Everything(rs.Dense()), **options)
    assert refusal.value.argument == argument


def test_a_module_prints_what_it_attends_to() -> None:
    assert "segment_lengths=(4, 12)" in repr(DilatedSelfAttention(16, 4, (4, 12), (1, 3)))


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("embed_dim", (15, 4, (4,), (1,)), {}),
        ("num_heads", (16, 0, (4,), (1,)), {}),
        ("kv_heads", (16, 4, (4,), (1,)), {"kv_heads": 3}),
        ("kv_heads", (16, 4, (4,), (1,)), {"kv_heads": 0}),
        ("head_dim", (12, 4, (4,), (1,)), {}),
        ("rotary_base", (16, 4, (4,), (1,)), {"rotary_base": 0.0}),
        ("dilation_rates", (16, 4, (4,), (1, 2)), {}),
        ("embed_dim", (16.0, 4, (4,), (1,)), {}),
        ("embed_dim", ("16", 4, (4,), (1,)), {}),
        ("embed_dim", (0, 4, (4,), (1,)), {}),
        ("num_heads", (16, 4.0, (4,), (1,)), {}),
        ("num_heads", (16, "4", (4,), (1,)), {}),
        ("num_heads", (16, True, (4,), (1,)), {}),
        ("num_heads", (16, None, (4,), (1,)), {}),
        ("kv_heads", (16, 4, (4,), (1,)), {"kv_heads": 2.0}),
        ("kv_heads", (16, 4, (4,), (1,)), {"kv_heads": True}),
        ("segment_lengths", (16, 4, 5, (1,)), {}),
        ("segment_lengths", (16, 4, None, (1,)), {}),
        ("segment_lengths[0]", (16, 4, "4", (1,)), {}),
        ("dilation_rates", (16, 4, (4,), 1), {}),
        ("rotary_base", (16, 4, (4,), (1,)), {"rotary_base": "x"}),
        ("rotary_base", (16, 4, (4,), (1,)), {"rotary_base": float("inf")}),
        ("rotary_base", (16, 4, (4,), (1,)), {"rotary_base": float("nan")}),
        ("rotary_base", (16, 4, (4,), (1,)), {"rotary_base": 10**400}),
        ("rotary_base", (16, 4, (4,), (1,)), {"rotary_base": True}),
        ("causal", (16, 4, (4,), (1,)), {"causal": "no"}),
        ("rotary", (16, 4, (4,), (1,)), {"rotary": "no"}),
        ("bias", (16, 4, (4,), (1,)), {"bias": None}),
    ],
)
def test_a_module_that_makes_no_sense_is_refused_by_name(
    argument: str, arguments: tuple[object, ...], options: dict[str, object]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        DilatedSelfAttention(*arguments, **options)  # type: ignore[arg-type]
    assert refusal.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "options"),
    [
        ("pattern", {"pattern": None}),
        ("pattern", {"pattern": "dense"}),
        ("pattern", {"pattern": rs.Dense}),
        ("sink", {"sink": 1}),
        ("dropout_p", {"dropout_p": 1.0}),
        ("dropout_p", {"dropout_p": -0.1}),
        ("dropout_p", {"dropout_p": float("nan")}),
        ("dropout_p", {"dropout_p": "0.1"}),
        ("dropout_p", {"dropout_p": True}),
        ("value_head_dim", {"value_head_dim": 0}),
        ("value_head_dim", {"value_head_dim": 4.0}),
    ],
)
def test_self_attention_that_makes_no_sense_is_refused_by_name(
    argument: str, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        SelfAttention(16, 4, **{"pattern": rs.Dense(), **options})
    assert refusal.value.argument == argument


@pytest.mark.parametrize("sizes", [[4, 12], (4, 12), range(4, 13, 8), iter((4, 12))])
def test_segment_lengths_may_come_in_any_collection(sizes: Any) -> None:
    layer = DilatedSelfAttention(16, 4, sizes, (1, 3))
    assert layer.pattern == rs.Dilated((4, 12), (1, 3))


@pytest.mark.parametrize("x", [torch.randn(20, 16), torch.randn(1, 20, 8), None, [[0.0]]])
def test_input_of_another_shape_is_refused_by_name(x: Any) -> None:
    layer = DilatedSelfAttention(16, 4, (4,), (1,))
    with pytest.raises(InvalidArgument) as refusal:
        layer(x)
    assert refusal.value.argument == "x"


@pytest.mark.parametrize("rotary", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"layout": rs.Layout(9)},
        {"layout": rs.Layout(8, 2)},
        {"layout": 5},
        {"layout": "x"},
        {"tokens": 5},
        {"tokens": rs.Grid(3, 3)},
        {"layout": rs.Layout(8), "tokens": rs.Grid(3, 3)},
        {"layout": rs.Layout(8), "group": "world"},
        {"documents": Documents([3, 4])},
        {"documents": Documents([])},
        {"documents": [1, 8]},
        {"documents": "x"},
        {"documents": Documents([8]), "tokens": rs.Grid(2, 4)},
        {"key_padding": torch.ones(1, 7).bool()},
        {"key_padding": torch.ones(1, 8)},
        {"key_padding": [True] * 8},
    ],
)
def test_a_module_refuses_what_attention_refuses(rotary: bool, options: dict[str, Any]) -> None:
    layer = DilatedSelfAttention(16, 4, (4,), (1,), rotary=rotary)
    q = torch.randn(1, 8, 4, 4)
    with pytest.raises(InvalidArgument) as expected:
        rs.attention(q, q, q, pattern=layer.pattern, **options)
    with pytest.raises(InvalidArgument) as refusal:
        layer(torch.randn(1, 8, 16), **options)
    assert str(refusal.value) == str(expected.value)


def test_what_is_no_cache_is_refused_by_name() -> None:
    with pytest.raises(InvalidArgument, match=r"^cache: expected a cache"):
        SelfAttention(16, 4, rs.Dense())(torch.randn(1, 8, 16), cache="x")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argument", "head_dim", "base"),
    [("head_dim", 8.0, 1e4), ("head_dim", True, 1e4), ("head_dim", "8", 1e4), ("base", 8, -1.0)],
)
def test_a_rotary_embedding_that_makes_no_sense_is_refused_by_name(
    argument: str, head_dim: Any, base: float
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        RotaryEmbedding(head_dim, base)
    assert refusal.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "x", "positions"),
    [
        ("x", None, torch.arange(3)),
        ("x", torch.randn(3, 1, 8), torch.arange(3)),
        ("x", torch.randn(1, 3, 1, 6), torch.arange(3)),
        ("positions", torch.randn(1, 3, 1, 8), torch.arange(4)),
        ("positions", torch.randn(1, 3, 1, 8), torch.arange(3)[None]),
        ("positions", torch.randn(1, 3, 1, 8), [0, 1, 2]),
    ],
)
def test_a_rotary_embedding_refuses_rows_that_do_not_fit(
    argument: str, x: Any, positions: Any
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        RotaryEmbedding(8)(x, positions)
    assert refusal.value.argument == argument
