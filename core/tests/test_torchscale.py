"""torchscale's dilated attention: its sets of tokens, its zeros, its module and its weights.

Written from torchscale's sources, without its code: `slots` says which token each slot of each
head holds, `mixture` attends within slots and mixes branches by their softmax denominators.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ringspan as rs
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan.compat import torchscale
from ringspan.compat.torchscale import DilatedAttention
from ringspan.contracts import Cliques, Documents, Domain, Sequence
from ringspan.errors import InvalidArgument, NotYetSupported
from ringspan.testing import assert_exact, multiplicity, yardstick
from ringspan.testing.formula import Extras
from torch import nn

pytestmark = pytest.mark.usefixtures("toy")

GIGAPATH = (1024, 5792, 32768, 185363, 1048576), (1, 2, 4, 8, 16)


def slots(N: int, length: int, rate: int, heads: int) -> np.ndarray:
    """The token in each slot, `[segments, heads, slots]`; -1: torchscale's zeros.

    The sequence is filled up to whole segments, each of those to a multiple of the rate, and the
    heads are cut into `rate` blocks; block `b` keeps every rate-th token from number `b`.
    """
    length = min(length, N)
    segments, kept = math.ceil(N / length), math.ceil(length / rate)
    filled = np.full((segments, kept * rate), -1)
    for token in range(N):
        filled[token // length, token % length] = token
    block = math.ceil(heads / rate)
    return np.stack([filled[:, head // block :: rate] for head in range(heads)], axis=1)


def mixture(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    branches: tuple[tuple[int, ...], tuple[int, ...]],
    causal: bool,
) -> torch.Tensor:
    """Branches, each a softmax over slots, mixed by their denominators; nothing is detached."""
    batch, N, heads, head_dim = q.shape
    rows = torch.zeros(batch, N, heads, v.shape[-1], dtype=q.dtype)
    total = torch.zeros(batch, N, heads, dtype=q.dtype)
    for length, rate in zip(*branches, strict=True):
        for segment in slots(N, length, rate, heads):
            for head, held in enumerate(segment):
                real = torch.from_numpy(held >= 0)
                # Zeros are rows of their own, after the last token.
                key = torch.cat([k[:, :, head], torch.zeros_like(k[:, :1, head])], 1)[:, held]
                value = torch.cat([v[:, :, head], torch.zeros_like(v[:, :1, head])], 1)[:, held]
                weight = (q[:, held[held >= 0], head] @ key.mT / math.sqrt(head_dim)).exp()
                if causal:
                    weight = weight.tril()
                tokens = torch.from_numpy(held)[real]
                rows = rows.index_put(
                    (torch.arange(batch)[:, None], tokens, torch.tensor(head)),
                    weight @ value,
                    accumulate=True,
                )
                total = total.index_put(
                    (torch.arange(batch)[:, None], tokens, torch.tensor(head)),
                    weight.sum(-1),
                    accumulate=True,
                )
    return rows / torch.where(total == 0, 1, total)[..., None]


@dataclass(frozen=True)
class Case:
    """One attention over slots."""

    N: int
    heads: int
    segment_lengths: tuple[int, ...]
    dilation_rates: tuple[int, ...]
    causal: bool

    @property
    def branches(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        return self.segment_lengths, self.dilation_rates

    @property
    def pattern(self) -> rs.Dilated:
        return rs.Dilated.torchscale(*self.branches)

    @property
    def domain(self) -> Domain:
        return domain(self.N, self.heads, self.causal)


def domain(N: int, heads: int, causal: bool = False, documents: Any = None) -> Domain:
    packed = None if documents is None else Documents.from_lengths(documents)
    return Domain(Sequence(N), heads, heads, lambda *_: np.arange(N), packed, causal)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    branches = draw(
        st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12)), min_size=1, max_size=3)
    )
    return Case(
        draw(st.integers(1, 40)),
        draw(st.integers(1, 12)),
        tuple(length for length, _ in branches),
        tuple(rate for _, rate in branches),
        draw(st.booleans()),
    )


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """Warnings have a test of their own."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torchscale moves")
        yield


@given(cases())
def test_each_branch_has_the_token_sets_of_torchscale(case: Case) -> None:
    for length, rate in zip(*case.branches, strict=True):
        found = {}
        for part in rs.Dilated.torchscale((length,), (rate,)).parts(case.domain):
            assert isinstance(part, Cliques)
            sets = part.sets.listed()
            for head in part.heads:
                found[head] = [s.tolist() for s in np.split(sets.rows, sets.bounds[1:-1])]
        held = slots(case.N, length, rate, case.heads).swapaxes(0, 1)
        sets_of = [[row[row >= 0].tolist() for row in segments] for segments in held]
        expected = {head: [s for s in sets if s] for head, sets in enumerate(sets_of)}
        assert found == {head: sets for head, sets in expected.items() if sets}


@given(cases())
def test_null_keys_are_the_zeros_in_the_slots_of_a_query(case: Case) -> None:
    expected = np.zeros((case.heads, case.N), np.int64)
    for length, rate in zip(*case.branches, strict=True):
        for segment in slots(case.N, length, rate, case.heads):
            for head, held in enumerate(segment):
                expected[head, held[held >= 0]] += (held < 0).sum()
    found = case.pattern.null_keys(case.domain)
    if case.causal or not expected.any():
        assert found is None
    else:
        assert (found == expected).all()


@given(cases(), st.lists(st.integers(0, 20), min_size=1, max_size=4))
def test_null_keys_of_packed_documents_are_those_of_each_alone(
    case: Case, lengths: list[int]
) -> None:
    def counted(over: Domain) -> np.ndarray:
        found = case.pattern.null_keys(over)
        return np.zeros((case.heads, over.N), np.int64) if found is None else found

    packed = counted(domain(sum(lengths), case.heads, documents=lengths))
    alone = [counted(domain(N, case.heads)) for N in lengths]
    assert (packed == np.concatenate(alone, axis=1)).all()


def test_null_keys_of_gigapath_are_counted_by_segment_and_not_by_pair() -> None:
    pattern = rs.Dilated.torchscale(*GIGAPATH)
    found = pattern.null_keys(domain(10_000, 16))
    assert found is not None
    assert found.shape == (16, 10_000)
    # Head 0 in the last segments of 1024 and 5792 tokens; 10,000 is a multiple of 1, 4, 8, 16.
    assert found[0, -2] == (10 * 1024 - 10_000) + (2 * 5792 - 10_000) // 2
    assert found[0, 0] == 0


@given(cases(), st.integers(0, 99))
def test_branches_mixed_by_their_denominators_are_the_one_formula(case: Case, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    tensors = torch.randn(
        4, 2, case.N, case.heads, 5, generator=generator, dtype=torch.float64
    ).unbind()
    q, k, v, grad_out = tensors
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = mixture(*leaves, case.branches, case.causal)
    out.backward(grad_out)
    grads = {f"grad_{n}": x.grad for n, x in zip(("query", "key", "value"), leaves, strict=True)}
    assert_exact({"out": out, **grads}, _yardstick(case, *tensors))


def _yardstick(case: Case, *tensors: torch.Tensor) -> Any:
    q, k, v, grad_out = tensors
    args = (case.N, case.heads, case.heads, *case.branches)
    m = multiplicity.torchscale(*args)
    extras = Extras(null_keys=multiplicity.torchscale_null_keys(*args))
    if case.causal:
        m, extras = multiplicity.causal_part(m), Extras()
    return yardstick(q, k, v, m, grad_out=grad_out, extras=extras)


@given(cases(), st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_the_pattern_computes_what_torchscale_computes_with_exact_gradients(
    case: Case, dtype: torch.dtype
) -> None:
    tensors = torch.randn(4, 1, case.N, case.heads, 4).to(dtype).unbind()
    leaves = [x.clone().requires_grad_() for x in tensors[:3]]
    out = rs.attention(*leaves, pattern=case.pattern, causal=case.causal)
    out.backward(tensors[3])
    grads = {f"grad_{n}": x.grad for n, x in zip(("query", "key", "value"), leaves, strict=True)}
    assert_exact({"out": out, **grads}, _yardstick(case, *tensors))


def test_rates_that_shift_the_output_of_torchscale_are_warned_about() -> None:
    pattern = rs.Dilated.torchscale(*GIGAPATH)
    assert 185363 % 8
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pattern.check(domain(185_363, 16))
        pattern.check(domain(400_000, 16, documents=[185_363, 100, 185_363, 29_174]))
    with pytest.warns(UserWarning, match="torchscale moves the output") as caught:
        pattern.check(domain(185_364, 16))
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="the rate 8 does not divide 185363"):
        pattern.check(domain(185_464, 16, documents=[100, 185_364]))


def test_a_call_warns_at_the_line_that_makes_it() -> None:
    q = torch.randn(1, 13, 2, 4)
    with pytest.warns(UserWarning, match="torchscale moves") as caught:
        rs.attention(q, q, q, pattern=rs.Dilated.torchscale((5,), (2,)))
    assert [warning.filename for warning in caught] == [__file__]


def test_key_padding_is_refused_for_the_pattern() -> None:
    q = torch.randn(1, 13, 2, 4)
    with pytest.raises(NotYetSupported, match=r"^key_padding.*Pack the rows"):
        rs.attention(
            q,
            q,
            q,
            pattern=rs.Dilated.torchscale((8,), (2,)),
            key_padding=torch.ones(1, 13, dtype=torch.bool),
        )


# The module.


def xpos(x: torch.Tensor, scale: torch.Tensor, base: float, downscale: bool) -> torch.Tensor:
    """Rotation and scale by position, one token, head and pair of channels at a time."""
    _, N, _, head_dim = x.shape
    out = torch.empty_like(x)
    for p in range(N):
        for c in range(head_dim // 2):
            angle = p * 10000 ** (-c / (head_dim // 2))
            size = scale[c].double() ** ((p + (-N // 2)) / base)
            size = 1 / size if downscale else size
            even, odd = x[:, p, :, 2 * c], x[:, p, :, 2 * c + 1]
            out[:, p, :, 2 * c] = (even * math.cos(angle) - odd * math.sin(angle)) * size
            out[:, p, :, 2 * c + 1] = (odd * math.cos(angle) + even * math.sin(angle)) * size
    return out


def computed(module: Any, x: torch.Tensor, causal: bool = False) -> torch.Tensor:
    """What torchscale's module computes, from its parts, for rows without padding."""
    heads = module.num_heads
    q, k, v = (
        projection(x).unflatten(-1, (heads, -1))
        for projection in (module.q_proj, module.k_proj, module.v_proj)
    )
    if module.xpos is not None:
        q = xpos(q, module.xpos.scale, module.xpos.scale_base, downscale=False)
        k = xpos(k, module.xpos.scale, module.xpos.scale_base, downscale=True)
    branches = module.pattern.segment_lengths, module.pattern.dilation_rates
    out = mixture(q, k, v, branches, causal).flatten(-2)
    if module.inner_attn_ln is not None:
        out = module.inner_attn_ln(out)
    return module.out_proj(out)


def layer(**options: Any) -> DilatedAttention:
    torch.manual_seed(0)
    made = DilatedAttention(24, 6, [7, 20], [1, 3], dtype=torch.float64, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"subln": False}, {"xpos_rel_pos": True, "xpos_scale_base": 16}], ids=str
)
def test_the_module_computes_what_torchscale_computes(
    options: dict[str, Any], causal: bool
) -> None:
    module = layer(**options)
    x = torch.randn(2, 33, 24, dtype=torch.float64)
    grad = torch.randn_like(x)
    found, expected = [], []
    for results, compute in ((found, module), (expected, None)):
        leaf = x.clone().requires_grad_()
        if compute is None:
            out = computed(module, leaf, causal)
        else:
            out, weights = compute(leaf, leaf, leaf, is_causal=causal)
            assert weights is None
        wanted = [leaf, *module.parameters()]
        results += [out, *torch.autograd.grad(out, wanted, grad)]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("options", [{}, {"xpos_rel_pos": True}], ids=str)
@pytest.mark.parametrize("causal", [False, True])
def test_a_padded_row_is_what_it_is_alone(options: dict[str, Any], causal: bool) -> None:
    module = layer(**options)
    x = torch.randn(5, 30, 24, dtype=torch.float64)
    padding = torch.zeros(5, 30, dtype=torch.bool)
    padding[0, 22:] = True
    padding[1, :13] = True
    padding[2, ::3] = True
    padding[3] = True
    out, _ = module(x, x, x, key_padding_mask=padding, is_causal=causal)
    for row in (0, 1, 2, 4):
        real = x[row, ~padding[row]][None]
        torch.testing.assert_close(out[row, ~padding[row]][None], computed(module, real, causal))
    nothing = module.out_proj(module.inner_attn_ln(torch.zeros(24, dtype=torch.float64)))
    torch.testing.assert_close(out[padding], nothing.expand(int(padding.sum()), 24))


def test_padding_gets_no_gradient_but_for_its_own_output() -> None:
    module = layer(subln=False)
    x = torch.randn(2, 11, 24, dtype=torch.float64, requires_grad=True)
    padding = torch.zeros(2, 11, dtype=torch.bool)
    padding[1, 6:] = True
    module(x, x, x, key_padding_mask=padding)[0].square().sum().backward()
    assert x.grad is not None
    assert (x.grad[padding] == 0).all()
    assert (x.grad[~padding] != 0).any(-1).all()


@pytest.mark.parametrize("padding", [None, torch.zeros(2, 30, dtype=torch.bool)], ids=["no", "0"])
def test_a_mask_without_padding_changes_nothing(padding: Any) -> None:
    module, x = layer(), torch.randn(2, 30, 24, dtype=torch.float64)
    assert torch.equal(module(x, x, x, key_padding_mask=padding)[0], module(x, x, x)[0])


def test_a_compiled_module_is_whole() -> None:
    module = layer(xpos_rel_pos=True)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for N in (30, 31):
        x = torch.randn(2, N, 24, dtype=torch.float64, requires_grad=True)
        grads = []
        for attend in (compiled, module):
            out = attend(x, x, x, is_causal=True)[0]
            grads.append(torch.autograd.grad(out.square().sum(), x)[0])
        torch.testing.assert_close(*grads)


def test_dropout_is_active_in_training_only() -> None:
    module, x = layer(dropout=0.5), torch.randn(1, 30, 24, dtype=torch.float64)
    without = layer().eval()(x, x, x)[0]
    assert torch.equal(module.eval()(x, x, x)[0], without)
    assert not torch.equal(module.train()(x, x, x)[0], without)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"incremental_state": {}}, "incremental_state"),
        ({"attn_mask": torch.zeros(9, 9)}, "attn_mask"),
        ({"rel_pos": torch.zeros(9, 9)}, "rel_pos"),
        ({"key": torch.zeros(1, 8, 24)}, "key"),
        ({"query": torch.zeros(1, 9, 23)}, "query"),
        ({"value": torch.zeros(2, 9, 24)}, "value"),
        ({"key_padding_mask": torch.zeros(1, 8, dtype=torch.bool)}, "key_padding_mask"),
        ({"key_padding_mask": torch.zeros(1, 9)}, "key_padding_mask"),
        ({"key_padding_mask": [[True] * 9]}, "key_padding_mask"),
    ],
)
def test_the_module_refuses_by_name_what_it_does_not_compute(
    options: dict[str, Any], named: str
) -> None:
    x = torch.zeros(1, 9, 24, dtype=torch.float64)
    given = {"query": x, "key": x, "value": x} | options
    with pytest.raises((InvalidArgument, NotYetSupported), match=f"^{named}"):
        layer()(**given)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ((24, 5, [8], [1]), "embed_dim"),
        ((24, 4, "8, [", [1]), "segment_length"),
        ((24, 4, "__import__('os')", [1]), "segment_length"),
        ((24, 4, [8], [1, 2]), "dilation_rates"),
        ((24, 4, 8, 1), "segment_lengths"),
        ((24, 4, [8], [1], 1.5), "dropout"),
        ((24, 4, [8], [1], 0.0, False), "self_attention"),
        ((24, 4, [8], [1], 0.0, True, "yes"), "subln"),
    ],
)
def test_what_no_module_can_be_built_from_is_refused_by_name(
    arguments: tuple[Any, ...], named: str
) -> None:
    with pytest.raises(InvalidArgument, match=f"^{named}"):
        DilatedAttention(*arguments)


def test_sequences_on_whose_ends_xpos_overflows_are_refused() -> None:
    module = DilatedAttention(8, 1, [8], [1], xpos_rel_pos=True, xpos_scale_base=2)
    x = torch.randn(1, 100, 8)
    assert module(x, x, x)[0].isfinite().all()
    x = torch.randn(1, 142, 8)
    with pytest.raises(InvalidArgument, match="at most 141 tokens"):
        module(x, x, x)


# Weights.


def gigapath() -> DilatedAttention:
    with torch.device("meta"):
        return DilatedAttention(768, 16, *GIGAPATH)


def test_the_state_dict_has_the_names_and_shapes_of_torchscale() -> None:
    projections = {
        f"{name}_proj.{kind}": [768, 768] if kind == "weight" else [768]
        for name in ("q", "k", "v", "out")
        for kind in ("weight", "bias")
    }
    norm = {"inner_attn_ln.weight": [768], "inner_attn_ln.bias": [768]}
    shapes = {name: list(x.shape) for name, x in gigapath().state_dict().items()}
    assert shapes == projections | norm
    assert layer(subln=False, xpos_rel_pos=True).state_dict().keys() == {
        *projections,
        "xpos.scale",
    }


def test_a_state_dict_is_loaded_whole() -> None:
    source, target = layer(xpos_rel_pos=True), layer(xpos_rel_pos=True)
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    target.load_state_dict(source.state_dict())
    x = torch.randn(1, 9, 24, dtype=torch.float64)
    assert torch.equal(source(x, x, x)[0], target(x, x, x)[0])


def test_a_state_dict_that_does_not_fit_is_one_error_that_names_everything() -> None:
    module = layer()
    before = copy.deepcopy(module.state_dict())
    state = layer(subln=False).state_dict() | {
        "gate.weight": torch.zeros(3),
        "q_proj.bias": torch.zeros(23),
    }
    with pytest.raises(InvalidArgument) as caught:
        module.load_state_dict(state)
    message = str(caught.value)
    assert message.startswith("state_dict")
    assert "missing: inner_attn_ln.bias, inner_attn_ln.weight" in message
    assert "unexpected: gate.weight" in message
    assert "q_proj.bias [23] instead of [24]" in message
    assert all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


def test_the_names_of_a_whole_model_are_told_what_to_take_off() -> None:
    prefix = "encoder.layers.0.self_attn."
    state = {prefix + name: x for name, x in layer().state_dict().items()}
    with pytest.raises(InvalidArgument, match=f"Take those of '{prefix}' alone"):
        layer().load_state_dict(state | {"encoder.layers.1.fc1.weight": torch.zeros(1)})
    result = layer().load_state_dict(state, strict=False)
    assert len(result.unexpected_keys) == len(state)


# A model as torchscale builds it, of which nothing can run without flash-attn.


class XPOS(nn.Module):
    def __init__(self, head_dim: int, scale_base: float) -> None:
        super().__init__()
        self.scale_base = scale_base
        self.register_buffer("scale", torch.linspace(0.3, 1, head_dim // 2))


class MultiheadAttention(nn.Module):
    def __init__(
        self,
        args: SimpleNamespace,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        self_attention: bool = False,
        encoder_decoder_attention: bool = False,
        subln: bool = False,
    ) -> None:
        super().__init__()
        self.args, self.embed_dim, self.num_heads = args, embed_dim, num_heads
        self.dropout = dropout
        for name in ("k_proj", "v_proj", "q_proj", "out_proj"):
            setattr(self, name, args.wrap(nn.Linear(embed_dim, embed_dim)))
        self.inner_attn_ln = args.wrap(nn.LayerNorm(embed_dim, eps=args.layernorm_eps))
        if not subln:
            self.inner_attn_ln = None
        self.xpos = XPOS(embed_dim // num_heads, 100) if args.xpos_rel_pos else None

    def forward(self, *tensors: torch.Tensor, **options: Any) -> Any:
        raise ImportError("flash_attn")


# Named as torchscale's, to be recognized by that.
Torchscales = type("DilatedAttention", (MultiheadAttention,), {})


class Halves(nn.Module):
    """Two modules, one for the tokens up to a split."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.A, self.B = module, copy.deepcopy(module)
        for parameter in self.B.parameters():
            nn.init.normal_(parameter)
        self.split_position = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first, second = x.split([self.split_position, x.shape[1] - self.split_position], dim=1)
        return torch.cat([self.A(first), self.B(second)], dim=1)


class Layer(nn.Module):
    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.self_attn = Torchscales(args, 24, 6, self_attention=True, subln=args.subln)
        self.self_attn_layer_norm = nn.LayerNorm(24)

    def forward(self, x: torch.Tensor, encoder_padding_mask: torch.Tensor) -> torch.Tensor:
        residual = x
        x = self.self_attn_layer_norm(x)
        x, _ = self.self_attn(
            query=x,
            key=x,
            value=x,
            key_padding_mask=encoder_padding_mask,
            attn_mask=None,
            rel_pos=None,
            incremental_state=None,
        )
        return residual + x


class Encoder(nn.Module):
    def __init__(self, args: SimpleNamespace) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(args) for _ in range(2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        mask = torch.zeros(x.shape[:2]).bool() if mask is None else mask
        for block in self.layers:
            x = block(x, encoder_padding_mask=mask)
        return x


def args(**options: Any) -> SimpleNamespace:
    return SimpleNamespace(
        **{
            "segment_length": [7, 20],
            "dilated_ratio": [1, 3],
            "flash_attention": True,
            "subln": True,
            "layernorm_eps": 1e-3,
            "xpos_rel_pos": False,
            "xpos_scale_base": 100,
            "multiway": False,
            "seq_parallel": False,
            "wrap": lambda module: module,
        }
        | options
    )


NAMES = ["layers.0.self_attn", "layers.1.self_attn"]


@pytest.mark.parametrize(
    "options", [{}, {"subln": False, "xpos_rel_pos": True}, {"wrap": Halves}], ids=str
)
def test_a_replaced_model_runs_where_torchscale_does_not(options: dict[str, Any]) -> None:
    model = Encoder(args(**options)).double()
    x = torch.randn(2, 30, 24, dtype=torch.float64)
    with pytest.raises(ImportError, match="flash_attn"):
        model(x)
    state, parameters = model.state_dict(), dict(model.named_parameters())
    assert torchscale.replace(model) == NAMES
    assert model.state_dict().keys() == state.keys()
    assert {name: id(p) for name, p in model.named_parameters()} == {
        name: id(p) for name, p in parameters.items()
    }
    expected = x
    for block in model.layers:
        expected = expected + computed(block.self_attn, block.self_attn_layer_norm(expected))
    torch.testing.assert_close(model(x), expected)


def test_a_replaced_model_takes_padded_batches() -> None:
    model = Encoder(args())
    torchscale.replace(model)
    x = torch.randn(2, 30, 24)
    mask = torch.zeros(2, 30).bool()
    mask[0, 17:] = True
    torch.testing.assert_close(model(x, mask)[0, :17], model(x[:1, :17])[0])


def test_replacing_keeps_dtype_training_mode_frozen_parts_and_shared_modules() -> None:
    model = Encoder(args()).to(torch.bfloat16)
    model.layers[0].self_attn.eval()
    model.layers[0].self_attn.q_proj.weight.requires_grad_(False)
    model.layers[1].self_attn = model.layers[0].self_attn
    norm = model.layers[0].self_attn.inner_attn_ln
    assert torchscale.replace(model) == NAMES
    swapped = model.layers[0].self_attn
    assert isinstance(swapped, DilatedAttention)
    assert model.layers[1].self_attn is swapped
    assert swapped.inner_attn_ln is norm
    assert norm.eps == 1e-3
    assert (swapped.training, model.training) == (False, True)
    assert not swapped.q_proj.weight.requires_grad
    x = torch.randn(1, 9, 24, dtype=torch.bfloat16)
    assert model(x).dtype == torch.bfloat16
    assert torchscale.replace(model) == []


def test_a_module_that_only_shares_the_name_stays() -> None:
    other = type("DilatedAttention", (nn.Linear,), {})(3, 3)
    model = nn.Sequential(other)
    assert torchscale.replace(model) == []
    assert model[0] is other


def test_what_cannot_be_swapped_leaves_the_model_as_it_is() -> None:
    alone = Torchscales(args(), 24, 6, self_attention=True)
    with pytest.raises(InvalidArgument, match="cannot be swapped in place"):
        torchscale.replace(alone)
    model = Encoder(args())
    model.layers[1].self_attn.register_forward_hook(lambda *_: None)
    with pytest.raises(InvalidArgument, match=r"hooks on layers\.1\.self_attn"):
        torchscale.replace(model)
    assert type(model.layers[0].self_attn) is Torchscales


def test_the_arguments_of_torchscale_build_the_module_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = args(segment_length="[7, 20]", dilated_ratio="[1, 3]", xpos_rel_pos=True)
    monkeypatch.setitem(globals(), "Torchscales", DilatedAttention.from_args)
    model = Encoder(given)
    x = torch.randn(1, 30, 24)
    assert model(x).shape == x.shape
    attn = model.layers[0].self_attn
    assert attn.pattern == rs.Dilated.torchscale((7, 20), (1, 3))
    assert attn.inner_attn_ln.eps == 1e-3
    assert attn.xpos.scale_base == 100
    with pytest.raises(NotYetSupported, match=r"^args\.multiway"):
        Encoder(args(multiway=True))
    with pytest.raises(InvalidArgument, match=r"^self_attention"):
        DilatedAttention.from_args(given, 24, 6, encoder_decoder_attention=True)


def test_compat_imports_neither_torchscale_nor_flash_attn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib
    import sys

    for name in ("torchscale", "flash_attn", "fairscale", "xformers"):
        monkeypatch.setitem(sys.modules, name, None)
    for name in [name for name in sys.modules if name.startswith("ringspan.compat")]:
        monkeypatch.delitem(sys.modules, name)
    assert importlib.import_module("ringspan.compat.torchscale").replace(nn.Linear(1, 1)) == []
