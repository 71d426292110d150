"""Modules on a ring: the same numbers as alone, for outputs and for summed gradients."""

from __future__ import annotations

from typing import Any

import pytest
import ringspan as rs
import torch
import torch.distributed as dist
from ringspan.contracts import Documents
from ringspan.nn import LongNet

N = 37
LAYOUTS = {
    "even": {},
    "uneven": {"sizes": (20, 0, 17)},
    "snake": {"ordering": "snake"},
}


def model() -> LongNet:
    torch.manual_seed(0)
    patterns = [rs.Dilated((8, 40), (1, 4)), rs.Dense(window=(5, 0))]
    made = LongNet(11, 16, 2, 4, patterns, kv_heads=2, sink=True, dtype=torch.float64)
    for block in made.blocks:
        for layer in block.last_layers:  # type: ignore[union-attr]
            torch.nn.init.normal_(layer.weight, std=0.3)
    return made


def results(
    decoder: LongNet, tokens: torch.Tensor, upstream: torch.Tensor, options: dict[str, Any]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    logits = decoder(tokens, **options)
    return logits.detach(), list(torch.autograd.grad(logits, list(decoder.parameters()), upstream))


def whole() -> tuple[torch.Tensor, torch.Tensor, dict[str, Any]]:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(11, (2, N), generator=generator)
    upstream = torch.randn(2, N, 11, dtype=torch.float64, generator=generator)
    key_padding = torch.rand(2, N, generator=generator) > 0.2
    return tokens, upstream, {"documents": Documents([15, 0, 19, 3]), "key_padding": key_padding}


def one_rank(rank: int, which: str) -> tuple[torch.Tensor, list[torch.Tensor]]:
    tokens, upstream, options = whole()
    layout = rs.Layout(rs.Grid(1, N) if which == "snake" else N, 3, **LAYOUTS[which])
    if which == "snake":
        del options["documents"]  # one grid cannot hold several documents
    mine = (layout.shard(x, rank) for x in (tokens, upstream))
    out, grads = results(model(), *mine, {"layout": layout, "group": dist.group.WORLD, **options})
    for grad in grads:
        dist.all_reduce(grad)
    return layout.gather(out), grads


@pytest.mark.parametrize("which", list(LAYOUTS))
def test_a_decoder_on_a_ring_equals_it_alone(run_ring: Any, which: str) -> None:
    tokens, upstream, options = whole()
    if which == "snake":
        del options["documents"]
    expected, expected_grads = results(model(), tokens, upstream, options)
    for out, grads in run_ring(3, one_rank, which):
        torch.testing.assert_close(out, expected)
        for found, grad in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(found, grad)
