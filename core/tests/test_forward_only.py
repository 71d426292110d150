"""A kernel without a backward is chosen only where no gradient is needed."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import ringspan as rs
import torch
from ringspan.catalogue import catalogue
from ringspan.contracts import DeviceInfo, MaskCase, Problem
from ringspan.errors import NoEligibleProvider
from ringspan.testing import assert_exact, yardstick

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

SWIFT = """
from dataclasses import replace
from ringspan.contracts import NotYetSupported, hookimpl
from ringspan.testing.toy import Toy

class Swift(Toy):
    name = "swift"
    capabilities = replace(Toy.capabilities, backward=False)

    def priority(self, device):
        return 1000

    def backward(self, *args, **options):
        raise NotYetSupported("backward", expected="no gradient", got="a call of backward")

@hookimpl
def ringspan_attention_backends():
    return [Swift()]
"""


@pytest.fixture(scope="module", autouse=True)
def swift(_toy_distribution: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A plugin beside the toy's, whose backend is preferred and has no backward."""
    site = tmp_path_factory.mktemp("swift")
    (site / "swift_plugin.py").write_text(SWIFT)
    info = site / "ringspan_swift-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ringspan-swift\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ringspan]\nswift-plugin = swift_plugin\n")
    sys.path.append(str(site))
    catalogue.cache_clear()
    yield
    sys.path.remove(str(site))
    catalogue.cache_clear()


def tensors(*, requires_grad: bool) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(3, 1, 24, 2, 8, generator=torch.Generator().manual_seed(0)).unbind()
    return tuple(x.requires_grad_(requires_grad) for x in (q, k, v))  # type: ignore[return-value]


def chosen() -> set[str]:
    run = rs.last_run()
    assert run is not None
    return {decision.chosen for decision in run.decisions.values()}


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with rs.use(backend=["swift", "toy"]):
        return rs.attention(q, k, v, causal=True)


def test_it_is_chosen_where_no_gradient_is_needed() -> None:
    attend(*tensors(requires_grad=False))
    assert chosen() == {"swift"}


def test_it_is_chosen_where_gradients_are_off() -> None:
    with torch.no_grad():
        attend(*tensors(requires_grad=True))
    assert chosen() == {"swift"}


def test_another_is_chosen_where_a_gradient_is_needed_and_it_is_right() -> None:
    q, k, v = tensors(requires_grad=True)
    out = attend(q, k, v)
    assert chosen() == {"toy"}
    grad_out = torch.randn(out.shape, generator=torch.Generator().manual_seed(1))
    out.backward(grad_out)
    causal = torch.ones(24, 24, dtype=torch.int64).tril()
    exact = yardstick(q.detach(), k.detach(), v.detach(), causal, grad_out=grad_out)
    grads = {"grad_query": q.grad, "grad_key": k.grad, "grad_value": v.grad}
    assert_exact({"out": out} | {name: x for name, x in grads.items() if x is not None}, exact)


def test_named_where_a_gradient_is_needed_it_is_an_error_with_the_reason() -> None:
    q, k, v = tensors(requires_grad=True)
    with pytest.raises(NoEligibleProvider, match=r"gradient is needed \(supported: inference only"):
        rs.attention(q, k, v, backend="swift")


@pytest.mark.parametrize(("needs_backward", "expected"), [(False, "swift"), (True, "toy")])
@pytest.mark.parametrize("mask", sorted(MaskCase), ids=str)
def test_selection_says_the_same_for_every_mask(
    needs_backward: bool, expected: str, mask: MaskCase
) -> None:
    problem = Problem("cpu", "float32", mask, 8, 8, needs_backward=needs_backward)
    decision = catalogue().select(
        "backend", problem, DeviceInfo(type="cpu"), requested=["swift", "toy"]
    )
    assert decision.chosen == expected
