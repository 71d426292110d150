"""The implementation that benchmarks compare with computes what it says, so that it is fair."""

from __future__ import annotations

import pytest
import ringspan as rs
import torch
from ringspan.catalogue import catalogue
from torch import Tensor

from benchmarks import torchscale_style

HEADS, HEAD_DIM = 4, 8
KERNEL = "manual"


def problem(tokens: int) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    shape = (2, tokens, HEADS, HEAD_DIM)
    return tuple(torch.randn(shape, generator=draw, dtype=torch.float64) for _ in range(4))


def theirs(
    q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...], rates: tuple[int, ...], causal: bool
) -> Tensor:
    kernel = catalogue().provider("backend", KERNEL)
    return torchscale_style.attention(q, k, v, lengths, rates, causal=causal, kernel=kernel)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("lengths", "rates"), [((8, 16, 32), (1, 2, 4)), ((16, 64), (2, 8))])
def test_where_nothing_is_padded_it_is_dilated_attention_with_blocked_offsets(
    lengths: tuple[int, ...], rates: tuple[int, ...], causal: bool
) -> None:
    q, k, v, _ = problem(64)
    pattern = rs.Dilated(lengths, rates, head_offsets="blocked")
    ours = rs.attention(q, k, v, pattern=pattern, causal=causal, backend=KERNEL)
    torch.testing.assert_close(theirs(q, k, v, lengths, rates, causal), ours)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tokens", [50, 33, 7])
def test_its_padding_takes_part_as_in_the_pattern_for_published_weights(
    tokens: int, causal: bool
) -> None:
    q, k, v, _ = problem(tokens)
    lengths, rates = (8, 16, 64), (1, 2, 4)
    pattern = rs.Dilated.torchscale(lengths, rates)
    ours = rs.attention(q, k, v, pattern=pattern, causal=causal, backend=KERNEL)
    torch.testing.assert_close(theirs(q, k, v, lengths, rates, causal), ours)


@pytest.mark.parametrize("causal", [False, True])
def test_its_gradients_are_the_derivative_where_each_row_is_in_one_branch(causal: bool) -> None:
    *inputs, grad_out = problem(64)
    leaves = [x.requires_grad_() for x in inputs]
    pattern = rs.Dilated((16,), (2,), head_offsets="blocked")
    ours = rs.attention(*leaves, pattern=pattern, causal=causal, backend=KERNEL)
    found = torch.autograd.grad(theirs(*leaves, (16,), (2,), causal), leaves, grad_out)
    for mine, their in zip(torch.autograd.grad(ours, leaves, grad_out), found, strict=True):
        torch.testing.assert_close(their, mine)


def test_its_gradients_are_not_the_derivative_where_branches_are_mixed() -> None:
    *inputs, grad_out = problem(64)
    leaves = [x.requires_grad_() for x in inputs]
    lengths, rates = (8, 64), (1, 4)
    pattern = rs.Dilated(lengths, rates, head_offsets="blocked")
    out = rs.attention(*leaves, pattern=pattern, backend=KERNEL)
    ours = torch.autograd.grad(out, leaves, grad_out)
    found = torch.autograd.grad(theirs(*leaves, lengths, rates, False), leaves, grad_out)
    error = (found[0] - ours[0]).norm() / ours[0].norm()
    assert error > 0.05
