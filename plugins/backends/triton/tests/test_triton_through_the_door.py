"""`ringspan.attention` on these kernels: patterns, modes, and rows gathered and merged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import ringspan as rs
import torch
from ringspan.catalogue import catalogue
from ringspan.testing.site import plugged_in
from torch import Tensor

N, HEADS, KV_HEADS, HEAD_DIM = 107, 4, 2, 16
PATTERNS = {
    "dense": rs.Dense(),
    "window": rs.Dense(window=(13, 7)),
    "longnet": rs.Dilated((32, 64, 200), (1, 2, 5)),
    "blocks": rs.BlockSparse.local(32, 1, 1),
    "neighbours": rs.Neighborhood((5,)),
}
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "documents": {"documents": rs.Documents.from_lengths([50, 7, 50])},
    "sink": {"sink": torch.linspace(-1, 2, HEADS)},
    "padding": {"key_padding": torch.arange(N)[None] < 90},
    "dropout": {"dropout_p": 0.3, "seed": 5},
}
CALLS = [
    *(("longnet", mode, causal) for mode in MODES for causal in (False, True)),
    *((pattern, "plain", True) for pattern in PATTERNS if pattern != "longnet"),
    *((pattern, "dropout", False) for pattern in PATTERNS if pattern != "longnet"),
]
WAYS = {
    "in place": {"backend": "triton", "fused": "off"},
    "in place and pulled": {"backend": "triton", "fused": "triton"},
    "gathered and pulled": {"backend": "toy", "fused": "triton"},
}


@pytest.fixture(scope="module", autouse=True)
def toy() -> Iterator[None]:
    with plugged_in("toy", "ringspan.testing.toy"):
        catalogue.cache_clear()
        yield
    catalogue.cache_clear()


def results(mode: str, **options: Any) -> tuple[Tensor, ...]:
    draw = torch.Generator().manual_seed(0)
    shapes = ((HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM), (KV_HEADS, HEAD_DIM))
    inputs = [torch.randn(1, N, *shape, generator=draw).requires_grad_() for shape in shapes]
    given = dict(MODES[mode])
    if "sink" in given:
        given["sink"] = given["sink"].clone().requires_grad_()
        inputs.append(given["sink"])
    out = rs.attention(*inputs[:3], **given, **options)
    upstream = torch.randn(out.shape, generator=draw)
    return out.detach(), *torch.autograd.grad(out, inputs, upstream)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("pattern", "mode", "causal"), CALLS)
def test_every_way_gives_the_numbers_of_plain_tiles(
    pattern: str, mode: str, causal: bool, way: str
) -> None:
    call = {"pattern": PATTERNS[pattern], "causal": causal}
    expected = results(mode, **call, backend="toy")
    with rs.use(**WAYS[way]):
        found = results(mode, **call)
    for x, exact in zip(found, expected, strict=True):
        torch.testing.assert_close(x, exact, rtol=2e-5, atol=2e-5)
