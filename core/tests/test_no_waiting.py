"""A warm step asks the device nothing and brings nothing to it: what CUDA graphs need as well.

On a GPU each of these would make the host wait. Here the operators of a warm step are looked at,
with a backend that computes nothing: which of them read a value of a tensor, or make a tensor from
numbers of the host.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import pytest
import ringspan as rs
import torch
from ringspan.catalogue import catalogue
from ringspan.contracts import AttentionBackend, Grads, TileOutput, hookimpl
from ringspan.engine import operator
from ringspan.testing.site import plugged_in
from ringspan.testing.toy import Toy
from ringspan.testing.toy_whole import ToyWhole
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

N = 96
WAITING = {
    "aten::_local_scalar_dense",
    "aten::item",
    "aten::is_nonzero",
    "aten::equal",
    "aten::nonzero",
    "aten::masked_select",
    "aten::lift_fresh",
    "aten::_unique2",
}
PATTERNS = [
    rs.Dense(),
    rs.Dense(window=(13, 7)),
    rs.Dilated((32, 64, 128), (1, 2, 5)),
    rs.Neighborhood((3,)),
]
MODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "documents": {"documents": rs.Documents.from_lengths([7, 20, 33, 5, 9, 3, 8, 2, 4, 5])},
    "sink": {"sink": torch.zeros(4)},
    "padding": {"key_padding": torch.arange(N) < torch.tensor([[90], [N]])},
    "dropout": {"dropout_p": 0.3, "seed": 5},
}


def nothing(query: Tensor, value: Tensor) -> TileOutput:
    batch, rows, heads, _ = query.shape
    out = query.new_zeros(batch, rows, heads, value.shape[-1])
    return TileOutput(out, query.new_zeros(batch, heads, rows))


class StillTiles(Toy):
    """Computes nothing, tile by tile."""

    name: ClassVar[str] = "still-tiles"

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> TileOutput:
        return nothing(query, value)

    def backward(self, grad_out: Tensor, *tensors: Tensor, **_: Any) -> Grads:
        return Grads(*(x.new_zeros(x.shape) for x in tensors[:3]))


class StillWhole(ToyWhole):
    """Computes nothing, in place."""

    name: ClassVar[str] = "still-whole"

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> TileOutput:
        return nothing(query, value)

    def backward(self, grad_out: Tensor, *tensors: Tensor, **_: Any) -> Grads:
        return Grads(*(x.new_zeros(x.shape) for x in tensors[:3]))

    def forward_branch(
        self, query: Tensor, key: Tensor, value: Tensor, branch: Any, **options: Any
    ) -> TileOutput:
        into: TileOutput | None = options["into"]
        if into is not None:
            return TileOutput(into.out.zero_(), into.lse.zero_())
        return nothing(branch.query.view(query).flatten(0, 1).flatten(2, 3), value)

    def backward_branch(self, *tensors: Any, **options: Any) -> None:
        for grad in options["grads"]:
            grad.zero_()

    def gather(self, *placed: Any) -> tuple[Tensor, ...]:
        return tuple(rows.tile_batch(x) for rows, x in placed)

    def merge(self, pieces: Any, shape: Any, *, dtype: Any, **_: Any) -> Any:
        like = pieces[0].x
        return like.new_zeros(shape, dtype=dtype), like.new_zeros(shape[0], shape[2], shape[1])


@hookimpl
def ringspan_attention_backends() -> Sequence[AttentionBackend]:
    return [StillTiles(), StillWhole()]


class Seen(TorchDispatchMode):
    """Counts the operators that would make the host wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.operators = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().partition(".")[0]
        self.operators += 1
        self.waits.update([name] if name in WAITING else [])
        return func(*args, **(kwargs or {}))


@pytest.fixture(scope="module", autouse=True)
def still() -> Iterator[None]:
    sys.modules["still_backends"] = sys.modules[__name__]
    with plugged_in("still", "still_backends"):
        catalogue.cache_clear()
        yield
    catalogue.cache_clear()
    del sys.modules["still_backends"]


def step(pattern: Any, mode: dict[str, Any], causal: bool) -> None:
    q = torch.ones(2, N, 4, 8, requires_grad=True)
    k = torch.ones(2, N, 2, 8, requires_grad=True)
    out = rs.attention(q, k, k, pattern=pattern, causal=causal, **mode)
    torch.autograd.grad(out, (q, k), out)


@pytest.mark.parametrize("causal", [False, True], ids=["full", "causal"])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize(
    "way",
    [
        {"backend": "still-tiles", "fused": "off"},
        {"backend": "still-tiles", "fused": "still-whole"},
        {"backend": "still-whole", "fused": "still-whole"},
    ],
    ids=["tiles", "gathered and pulled", "in place"],
)
def test_a_warm_step_neither_reads_nor_makes_a_tensor_on_the_host(
    way: dict[str, str],
    pattern: Any,
    mode: str,
    causal: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with rs.use(**way):
        for _ in range(2):
            step(pattern, MODES[mode], causal)
        monkeypatch.setattr(torch, "from_numpy", None)
        seen = watched(monkeypatch)
        step(pattern, MODES[mode], causal)
    # A seed lies on the host, and is read there.
    assert seen.waits - Counter({"aten::item": int(mode == "dropout")}) == Counter()
    assert seen.operators


def watched(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """Sees what an attention operator does inside, where no mode around it looks."""
    seen = Seen()

    def under(compute: Any) -> Any:
        def run(*arguments: Any, **options: Any) -> Any:
            with seen:
                return compute(*arguments, **options)

        return run

    for name in ("prepare", "agreed_seed", "forward_pass", "backward_pass", "grad_sink"):
        monkeypatch.setattr(operator, name, under(getattr(operator, name)))
    return seen
