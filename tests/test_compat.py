"""Modules in the place of other libraries', on installed backends and on rings of processes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import ringspan as rs
import torch
from ringspan.compat.torchscale import DilatedAttention
from ringspan.errors import NotYetSupported
from ringspan.testing import assert_exact, multiplicity, yardstick
from ringspan.testing.formula import Extras

GIGAPATH = (1024, 5792, 32768, 185363, 1048576), (1, 2, 4, 8, 16)
LONGVIT = (64, 128, 256, 512, 1024), (1, 2, 4, 8, 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("branches", [GIGAPATH, LONGVIT], ids=["gigapath", "longvit"])
def test_patterns_of_published_models_are_exact(branches: Any, dtype: torch.dtype) -> None:
    N, heads, head_dim = 150, 16, 48
    q, k, v, grad_out = torch.randn(4, 1, N, heads, head_dim).to(dtype).unbind()
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = rs.attention(*leaves, pattern=rs.Dilated.torchscale(*branches), return_lse=True)
    grads = torch.autograd.grad(out, leaves, grad_out)
    shape = (N, heads, heads, *branches)
    exact = yardstick(
        q,
        k,
        v,
        multiplicity.torchscale(*shape),
        grad_out=grad_out,
        extras=Extras(null_keys=multiplicity.torchscale_null_keys(*shape)),
    )
    names = ("grad_query", "grad_key", "grad_value")
    assert_exact({"out": out, "lse": lse, **dict(zip(names, grads, strict=True))}, exact)


def test_a_layer_of_gigapath_takes_padded_slides() -> None:
    torch.manual_seed(0)
    layer = DilatedAttention(768, 16, *GIGAPATH).eval()
    x = torch.randn(3, 1300, 768)
    lengths = [1300, 77, 1025]
    padding = torch.arange(1300) >= torch.tensor(lengths)[:, None]
    with torch.no_grad():
        out, _ = layer(x, x, x, key_padding_mask=padding)
        for row, N in enumerate(lengths):
            alone = x[row, None, :N]
            torch.testing.assert_close(out[row, None, :N], layer(alone, alone, alone)[0])


def sharded(rank: int, x: torch.Tensor, grad: torch.Tensor, causal: bool) -> Any:
    """This rank's rows, as torchscale's sequence parallelism has them."""
    layer = made(seq_parallel=True)
    layout = rs.Layout(x.shape[1], torch.distributed.get_world_size())
    own = layout.shard(x, rank).requires_grad_()
    out, _ = layer(own, own, own, is_causal=causal)
    out.backward(layout.shard(grad, rank))
    # One element is enough to see a padded mask refused.
    padding = torch.zeros(own.shape[:2], dtype=torch.bool)
    padding[0, 0] = True
    refused = ""
    try:
        layer(own, own, own, key_padding_mask=padding)
    except NotYetSupported as error:
        refused = str(error)
    return out.detach(), own.grad, layer.q_proj.weight.grad, refused


def made(**options: Any) -> DilatedAttention:
    torch.manual_seed(0)
    return DilatedAttention(24, 6, (8, 32), (1, 4), dtype=torch.float64, **options)


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("causal", [False, True])
def test_a_sequence_over_several_ranks_is_what_it_is_on_one(
    run_ring: Callable[..., list[Any]], world_size: int, causal: bool
) -> None:
    layer = made()
    x = torch.randn(2, 45, 24, dtype=torch.float64, requires_grad=True)
    grad = torch.randn_like(x)
    expected, _ = layer(x, x, x, is_causal=causal)
    expected.backward(grad)
    parts = run_ring(world_size, sharded, x.detach(), grad, causal)
    outs, grads, weights, refused = zip(*parts, strict=True)
    torch.testing.assert_close(torch.cat(outs, 1), expected)
    torch.testing.assert_close(torch.cat(grads, 1), x.grad)
    torch.testing.assert_close(torch.stack(weights).sum(0), layer.q_proj.weight.grad)
    assert all(text.startswith("key_padding_mask") for text in refused) is (world_size > 1)
