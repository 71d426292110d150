"""`ringspan.parallel` in a process alone: rows, positions, labels, means, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ringspan import Documents, Layout, parallel
from ringspan.errors import InvalidArgument
from torch.nn.functional import cross_entropy


def test_a_process_alone_holds_all_rows_with_and_without_a_layout() -> None:
    x = torch.randn(2, 7, 3)
    for layout in (None, Layout(7)):
        assert torch.equal(parallel.shard(x, layout), x)
        assert torch.equal(parallel.gather(x, layout), x)


def test_collections_keep_their_kind_their_names_and_what_is_none() -> None:
    ids, mask = torch.arange(6)[None], torch.ones(1, 6, dtype=torch.bool)
    for function in (parallel.shard, parallel.gather):
        pair = function((ids, None))
        assert isinstance(pair, tuple)
        assert pair[1] is None
        assert isinstance(function([ids]), list)
        named = function({"ids": ids, "mask": mask, "none": None}, Layout(6))
        assert list(named) == ["ids", "mask", "none"]
        assert torch.equal(named["mask"], mask)


@pytest.mark.parametrize("convention", ["own", "gathered"])
def test_alone_every_convention_of_shard_is_the_derivative(convention: Any) -> None:
    x = torch.randn(2, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(parallel.shard(x, gradient=convention), x, torch.ones(2, 5))
    assert torch.equal(grad, torch.ones(2, 5))


@pytest.mark.parametrize("convention", ["own", "summed"])
def test_alone_every_convention_of_gather_is_the_derivative(convention: Any) -> None:
    x = torch.randn(2, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(parallel.gather(x, gradient=convention), x, torch.ones(2, 5))
    assert torch.equal(grad, torch.ones(2, 5))


@given(st.lists(st.integers(0, 6), min_size=1, max_size=6))
def test_positions_restart_in_each_document(lengths: list[int]) -> None:
    documents = Documents.from_lengths(lengths)
    found = parallel.position_ids(Layout(documents.N), documents=documents)
    assert found.dtype == torch.int64
    assert found.tolist() == [i for length in lengths for i in range(length)]


def labels_one_by_one(
    ids: torch.Tensor, documents: Documents, key_padding: torch.Tensor
) -> list[list[int]]:
    ends = set((documents.starts + documents.lengths - 1).tolist())
    return [
        [
            int(row[i + 1]) if i not in ends and real[i] and real[i + 1] else -100
            for i in range(len(row))
        ]
        for row, real in zip(ids, key_padding, strict=True)
    ]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.integers(0, 3), st.randoms())
def test_labels_are_the_next_real_token_of_the_same_document(
    lengths: list[int], batch: int, random: Any
) -> None:
    documents = Documents.from_lengths(lengths)
    generator = torch.Generator().manual_seed(random.randrange(2**31))
    ids = torch.randint(9, (batch, documents.N), generator=generator)
    real = torch.rand(ids.shape, generator=generator) > 0.3
    found = parallel.next_token_labels(ids, documents, real)
    assert found.tolist() == labels_one_by_one(ids, documents, real)
    whole = parallel.next_token_labels(ids, ignore_index=-1)
    assert torch.equal(whole[:, :-1], ids[:, 1:])
    assert (whole[:, -1:] == -1).all()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32])
def test_labels_of_narrow_ids_are_int64(dtype: torch.dtype) -> None:
    found = parallel.next_token_labels(torch.tensor([[200, 201]]).to(dtype))
    assert found.dtype == torch.int64
    assert found[0, 1] == -100


@pytest.mark.parametrize("gradients", ["mean", "sum"])
def test_alone_the_mean_of_real_tokens_is_cross_entropy_s_own(gradients: Any) -> None:
    logits = torch.randn(50, 11, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(11, (50,)).masked_fill(torch.rand(50) > 0.6, -100)
    losses = cross_entropy(logits, labels, reduction="none")
    found = parallel.token_mean(losses, labels != -100, gradients=gradients)
    expected = cross_entropy(logits, labels)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits)
    )


def test_without_a_mask_all_rows_count_whatever_their_shape() -> None:
    losses = torch.arange(6.0).reshape(1, 2, 3)
    assert parallel.token_mean(losses) == 2.5


def test_losses_of_padding_may_be_nan() -> None:
    losses = torch.tensor([1.0, math.nan, 3.0, math.inf], requires_grad=True)
    real = torch.tensor([True, False, True, False])
    found = parallel.token_mean(losses, real)
    assert found == 2.0
    assert torch.autograd.grad(found, losses)[0].tolist() == [0.5, 0.0, 0.5, 0.0]


@pytest.mark.parametrize("rows", [0, 3])
def test_without_any_real_token_loss_and_gradients_are_zero(rows: int) -> None:
    losses = torch.ones(rows, requires_grad=True)
    found = parallel.token_mean(losses, torch.zeros(rows, dtype=torch.bool))
    assert found == 0.0
    assert not torch.autograd.grad(found, losses)[0].any()


def test_calls_that_accumulate_divide_by_the_tokens_of_all_of_them() -> None:
    losses = torch.rand(12, dtype=torch.float64)
    real = torch.arange(12) % 5 > 0
    parts = [
        parallel.token_mean(losses[part], real[part], count=int(real.sum()))
        for part in (slice(0, 2), slice(2, 9), slice(9, 12))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), losses[real].mean())


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_a_mean_is_float32_at_least_and_its_gradient_has_the_losses_dtype(
    dtype: torch.dtype, wide: torch.dtype
) -> None:
    losses = torch.full((4096,), 3.0, dtype=dtype, requires_grad=True)
    found = parallel.token_mean(losses)
    assert (found.dtype, found.item()) == (wide, 3.0)
    (grad,) = torch.autograd.grad(found, losses)
    assert (grad.dtype, grad[0].item()) == (dtype, 1 / 4096)


def test_a_second_derivative_is_refused_and_not_zero() -> None:
    x = torch.ones(1, 4, requires_grad=True)
    found = parallel.token_mean(parallel.gather(x) ** 2)
    (grad,) = torch.autograd.grad(found, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_a_process_alone_has_no_traffic() -> None:
    assert parallel.traffic() == parallel.Traffic(bytes_sent=0, bytes_received=0)
    assert parallel.Traffic(5, 7) - parallel.Traffic(1, 2) == parallel.Traffic(4, 5)


X = torch.zeros(1, 6)
REFUSED = [
    (parallel.shard, (X,), {"gradient": "summed"}, "gradient"),
    (parallel.shard, (X, 2), {}, "layout"),
    (parallel.shard, (X, Layout(5)), {}, "x"),
    (parallel.shard, (X,), {"dim": 2}, "dim"),
    (parallel.shard, (3,), {}, "x"),
    (parallel.shard, (X, Layout(6, 2)), {}, "rank"),
    (parallel.shard, (X, None, "ring"), {}, "group"),
    (parallel.gather, (X,), {"gradient": "gathered"}, "gradient"),
    (parallel.gather, (X, "zigzag"), {}, "layout"),
    (parallel.gather, (X, Layout(5)), {}, "x"),
    (parallel.gather, (X, Layout(12, 2)), {}, "rank"),
    (parallel.gather, ([X, 3],), {}, "x"),
    (parallel.gather, (X,), {"dim": True}, "dim"),
    (parallel.position_ids, (6,), {}, "layout"),
    (parallel.position_ids, (Layout(6, 2),), {}, "rank"),
    (parallel.position_ids, (Layout(6),), {"documents": [6]}, "documents"),
    (parallel.position_ids, (Layout(6),), {"documents": Documents([2, 3])}, "documents"),
    (parallel.next_token_labels, (torch.zeros(6, dtype=torch.int64),), {}, "ids"),
    (parallel.next_token_labels, (X,), {}, "ids"),
    (parallel.next_token_labels, ([[1, 2]],), {}, "ids"),
    (parallel.next_token_labels, (X.long(), Documents([5])), {}, "documents"),
    (parallel.next_token_labels, (X.long(), [0, 6]), {}, "documents"),
    (parallel.next_token_labels, (X.long(), None, X), {}, "key_padding"),
    (parallel.next_token_labels, (X.long(), None, X[0] == 0), {}, "key_padding"),
    (parallel.next_token_labels, (X.long(),), {"ignore_index": None}, "ignore_index"),
    (parallel.token_mean, (3.0,), {}, "losses"),
    (parallel.token_mean, (X.long(),), {}, "losses"),
    (parallel.token_mean, (X, X), {}, "real"),
    (parallel.token_mean, (X, X[0] == 0), {}, "real"),
    (parallel.token_mean, (X,), {"gradients": "own"}, "gradients"),
    (parallel.token_mean, (X,), {"count": -1}, "count"),
    (parallel.token_mean, (X,), {"count": 2.0}, "count"),
    (parallel.traffic, (3.5,), {}, "group"),
]


@pytest.mark.parametrize(("function", "arguments", "options", "name"), REFUSED)
def test_what_does_not_fit_is_refused_by_name(
    function: Any, arguments: tuple[Any, ...], options: dict[str, Any], name: str
) -> None:
    with pytest.raises(InvalidArgument, match="expected") as refusal:
        function(*arguments, **options)
    assert refusal.value.argument == name
