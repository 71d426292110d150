"""The transformer block and the decoder: names, first weights, and what they compute."""

from __future__ import annotations

from typing import Any

import pytest
import ringspan as rs
import torch
from ringspan.contracts.documents import Documents
from ringspan.decoding import make_caches
from ringspan.demo.model import ByteModel
from ringspan.demo.settings import Settings
from ringspan.errors import InvalidArgument
from ringspan.nn import LongNet, SelfAttention, TransformerBlock
from torch import nn
from torch.nn import functional

pytestmark = pytest.mark.usefixtures("toy")

PATTERN = rs.Dilated((4, 12), (1, 3))
# Checkpoints hold these names; a change needs a migration.
NAMES_IN_A_BLOCK = [
    "attention_norm.weight",
    "attention.q_proj.weight",
    "attention.k_proj.weight",
    "attention.v_proj.weight",
    "attention.out_proj.weight",
    "perceptron.0.weight",
    "perceptron.1.weight",
    "perceptron.3.weight",
]


def awake(model: LongNet) -> LongNet:
    """With blocks that do something: new ones are silent."""
    for block in model.blocks:
        for layer in block.last_layers:  # type: ignore[union-attr]
            nn.init.normal_(layer.weight, std=0.3)
    return model


def test_names_in_the_state_dict_are_stable() -> None:
    names = [f"blocks.{layer}.{name}" for layer in range(2) for name in NAMES_IN_A_BLOCK]
    assert list(LongNet(11, 16, 2, 4, PATTERN).state_dict()) == [
        "embedding.weight",
        *names,
        "norm.weight",
    ]


def test_sinks_and_biases_add_names_and_change_none() -> None:
    names = set(LongNet(11, 16, 1, 4, PATTERN).state_dict())
    more = set(LongNet(11, 16, 1, 4, PATTERN, sink=True, bias=True).state_dict())
    assert names < more
    projections = (f"attention.{which}_proj" for which in ("q", "k", "v", "out"))
    biased = (*projections, "perceptron.1", "perceptron.3")
    assert more - names == {
        "blocks.0.attention.sink",
        *(f"blocks.0.{name}.bias" for name in biased),
    }


def test_the_demo_is_a_longnet_whose_seed_gives_the_weights_that_it_always_gave() -> None:
    settings = Settings(context=64, layers=2, width=16, heads=2, seed=5)
    model = ByteModel(settings)
    assert isinstance(model, LongNet)
    torch.manual_seed(settings.seed)
    drawn = {"embedding.weight": nn.Embedding(256, 16).weight}
    nn.init.normal_(drawn["embedding.weight"], std=0.02)
    for layer in range(2):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            drawn[f"blocks.{layer}.attention.{name}.weight"] = nn.Linear(16, 16, bias=False).weight
        drawn[f"blocks.{layer}.perceptron.3.weight"] = nn.Linear(64, 16, bias=False).weight
        drawn[f"blocks.{layer}.perceptron.1.weight"] = nn.Linear(16, 64, bias=False).weight
    for name, found in model.state_dict().items():
        if "norm" in name or "perceptron.0" in name:
            assert torch.equal(found, torch.ones(16)), name
        elif "out_proj" in name or "perceptron.3" in name:
            assert not found.any(), name
        else:
            assert torch.equal(found, drawn[name]), name


def test_a_block_adds_attention_and_then_a_perceptron_to_its_input() -> None:
    block = TransformerBlock(SelfAttention(16, 4, PATTERN), hidden_dim=20)
    x = torch.randn(2, 13, 16)
    middle = x + block.attention(functional.rms_norm(x, (16,)))
    up, down = block.perceptron[1], block.perceptron[3]
    expected = middle + down(functional.gelu(up(functional.rms_norm(middle, (16,)))))
    torch.testing.assert_close(block(x), expected)
    assert up.weight.shape == (20, 16)


def test_the_model_is_blocks_between_an_embedding_and_the_same_embedding() -> None:
    model = awake(LongNet(11, 16, 2, 4, PATTERN, kv_heads=2))
    tokens = torch.randint(11, (2, 13))
    x = functional.embedding(tokens, model.embedding.weight)
    for block in model.blocks:
        x = block(x)
    expected = functional.rms_norm(x, (16,)) @ model.embedding.weight.T
    torch.testing.assert_close(model(tokens), expected)


@pytest.mark.parametrize("bias", [False, True])
def test_blocks_start_silent(bias: bool) -> None:
    model = LongNet(11, 16, 2, 4, PATTERN, bias=bias)
    tokens = torch.randint(11, (1, 9))
    embedded = model.embedding(tokens)
    torch.testing.assert_close(model(tokens), model.norm(embedded) @ model.embedding.weight.T)


def test_each_block_may_have_a_pattern_of_its_own() -> None:
    patterns = [PATTERN, rs.Dense()]
    for given, expected in ((patterns, patterns), (PATTERN, [PATTERN, PATTERN])):
        attentions = LongNet(11, 16, 2, 4, given).attentions
        assert [attention.pattern for attention in attentions] == expected


def test_no_logit_depends_on_a_later_token() -> None:
    model = awake(LongNet(11, 16, 2, 4, [PATTERN, rs.Dense()]))
    tokens = torch.randint(11, (1, 20))
    changed = tokens.clone()
    changed[:, 12:] = (changed[:, 12:] + 1) % 11
    logits, others = model(tokens), model(changed)
    assert torch.equal(logits[:, :12], others[:, :12])
    assert not torch.equal(logits[:, 12:], others[:, 12:])


def test_packed_documents_equal_each_document_alone() -> None:
    model = awake(LongNet(11, 16, 2, 4, [PATTERN, rs.Dense(window=(3, 0))], sink=True))
    documents = Documents([5, 0, 14, 1])
    tokens = torch.randint(11, (2, documents.N))
    alone = [model(part) for part in tokens.split(documents.lengths.tolist(), 1)]
    torch.testing.assert_close(model(tokens, documents=documents), torch.cat(alone, 1))


def test_padding_after_a_text_changes_nothing_for_it() -> None:
    model = awake(LongNet(11, 16, 2, 4, [PATTERN, rs.Dense()]))
    tokens = torch.randint(11, (2, 13))
    key_padding = torch.arange(13) < torch.tensor([[13], [6]])
    out = model(tokens, key_padding=key_padding)
    torch.testing.assert_close(out[:1], model(tokens[:1]))
    torch.testing.assert_close(out[1:, :6], model(tokens[1:, :6]))


def test_every_parameter_gets_a_gradient() -> None:
    model = awake(LongNet(11, 16, 2, 4, PATTERN, bias=True, sink=True))
    model(torch.randint(11, (2, 9))).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name


def test_a_compiled_model_is_whole() -> None:
    torch._dynamo.reset()
    model = awake(LongNet(11, 16, 2, 4, [PATTERN, rs.Dense()]))
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    for N in (5, 12, 17):
        tokens = torch.randint(11, (1, N))
        torch.testing.assert_close(compiled(tokens), model(tokens))


def test_models_are_made_where_and_as_asked() -> None:
    model = LongNet(11, 16, 1, 4, PATTERN, bias=True, device="meta", dtype=torch.bfloat16)
    for name, parameter in model.named_parameters():
        assert (parameter.device.type, parameter.dtype) == ("meta", torch.bfloat16), name


@pytest.mark.parametrize(
    ("argument", "arguments", "options"),
    [
        ("vocab_size", (0, 16, 1, 4, PATTERN), {}),
        ("vocab_size", (11.0, 16, 1, 4, PATTERN), {}),
        ("embed_dim", (11, 18, 1, 4, PATTERN), {}),
        ("embed_dim", (11, "16", 1, 4, PATTERN), {}),
        ("num_layers", (11, 16, 0, 4, PATTERN), {}),
        ("num_layers", (11, 16, True, 4, PATTERN), {}),
        ("num_heads", (11, 16, 1, 0, PATTERN), {}),
        ("pattern", (11, 16, 1, 4, None), {}),
        ("pattern", (11, 16, 2, 4, [PATTERN]), {}),
        ("pattern", (11, 16, 1, 4, [None]), {}),
        ("pattern", (11, 16, 1, 4, "x"), {}),
        ("hidden_dim", (11, 16, 1, 4, PATTERN), {"hidden_dim": 0}),
        ("kv_heads", (11, 16, 1, 4, PATTERN), {"kv_heads": 3}),
        ("rotary", (11, 16, 1, 4, PATTERN), {"rotary": 1}),
        ("rotary_base", (11, 16, 1, 4, PATTERN), {"rotary_base": 0}),
        ("bias", (11, 16, 1, 4, PATTERN), {"bias": 1}),
        ("sink", (11, 16, 1, 4, PATTERN), {"sink": 1}),
        ("dropout_p", (11, 16, 1, 4, PATTERN), {"dropout_p": 2}),
    ],
)
def test_a_model_that_makes_no_sense_is_refused_by_name(
    argument: str, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        LongNet(*arguments, **options)
    assert refusal.value.argument == argument


@pytest.mark.parametrize(
    ("argument", "attention", "options"),
    [
        ("attention", nn.Linear(4, 4), {}),
        ("attention", None, {}),
        ("hidden_dim", SelfAttention(16, 4, rs.Dense()), {"hidden_dim": 1.5}),
        ("bias", SelfAttention(16, 4, rs.Dense()), {"bias": 1}),
    ],
)
def test_a_block_that_makes_no_sense_is_refused_by_name(
    argument: str, attention: Any, options: dict[str, Any]
) -> None:
    with pytest.raises(InvalidArgument) as refusal:
        TransformerBlock(attention, **options)
    assert refusal.value.argument == argument


@pytest.mark.parametrize(
    "tokens", [None, torch.zeros(3).long(), torch.zeros(1, 3), torch.zeros(1, 3).bool(), [[1, 2]]]
)
def test_tokens_of_another_kind_are_refused_by_name(tokens: Any) -> None:
    with pytest.raises(InvalidArgument, match=r"^input_ids: expected"):
        LongNet(11, 16, 1, 4, PATTERN)(tokens)


@pytest.mark.parametrize(("caches", "got"), [([], "0"), ([1, 2, 3], "3"), (5, "int")])
def test_one_cache_per_block_is_asked_for(caches: Any, got: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^caches: expected 2, one per block, got {got}"):
        LongNet(11, 16, 2, 4, PATTERN)(torch.zeros(1, 3).long(), caches=caches)


@pytest.mark.parametrize("pattern", [PATTERN, rs.Dense(), rs.Dense(window=(5, 0))])
def test_stepping_through_caches_equals_the_whole_forward(pattern: Any) -> None:
    model = awake(LongNet(11, 16, 2, 4, pattern, kv_heads=2, sink=True)).eval()
    tokens = torch.randint(11, (2, 30))
    caches = make_caches(model, batch=2)
    with torch.no_grad():
        parts = [model(part, caches=caches) for part in tokens.split([14, 1, 1, 5, *[1] * 9], 1)]
        torch.testing.assert_close(torch.cat(parts, 1), model(tokens))
