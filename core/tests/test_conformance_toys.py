"""The conformance kit passes what keeps to the contracts: toys of each kind that core can run."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch
from ringspan.contracts import (
    AttentionBackend,
    Availability,
    Capabilities,
    DeviceInfo,
    HeadDims,
    MaskCase,
    NotYetSupported,
    Ordering,
    Permutation,
    Tokens,
    axes_of,
)
from ringspan.testing import AttentionBackendSuite, GeometricOrderingSuite, OrderingSuite
from ringspan.testing.toy import Toy
from ringspan.testing.toy_whole import ToyWhole

if TYPE_CHECKING:
    from typing import Any

    from ringspan.contracts import Grads


class ForwardOnly(Toy):
    """A kernel without a backward."""

    name: ClassVar[str] = "forward-only"
    capabilities: ClassVar[Capabilities] = replace(Toy.capabilities, backward=False)

    def backward(self, *args: Any, **kwargs: Any) -> Grads:
        raise NotYetSupported("backward", expected="no gradient", got="a call of backward")


class Narrow(Toy):
    """A kernel that can do very little, and says so."""

    name: ClassVar[str] = "narrow"
    capabilities: ClassVar[Capabilities] = Capabilities(
        devices=frozenset({"cpu"}),
        dtypes=frozenset({"float16"}),
        masks=frozenset({MaskCase.FULL}),
        head_dims=HeadDims(32, 128, 32),
        strided=False,
        deterministic=False,
    )


class Scattered(Ordering):
    """A storage order that looks at nothing but the number of tokens."""

    name: ClassVar[str] = "scattered"

    def probe(self, device: DeviceInfo) -> Availability:
        return Availability.yes()

    def places(
        self,
        tokens: Tokens,
        *,
        shards: int = 1,
        weights: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
    ) -> Permutation:
        draw = torch.Generator().manual_seed(tokens.N)
        return Permutation.from_tokens(torch.randperm(tokens.N, generator=draw).to(device))


class Columns(Scattered):
    """Column after column."""

    name: ClassVar[str] = "columns"

    def places(
        self,
        tokens: Tokens,
        *,
        shards: int = 1,
        weights: tuple[float, ...] | None = None,
        device: torch.device | str = "cpu",
    ) -> Permutation:
        order = torch.arange(tokens.N, device=device)
        for axis in axes_of(tokens, ordering=self.name, device=device):
            order = order[torch.argsort(axis[order], stable=True)]
        return Permutation.from_tokens(order)


class TestToy(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Toy()


class TestForwardOnly(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return ForwardOnly()


class TestNarrow(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Narrow()


class TestToyWhole(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return ToyWhole()


class TestScattered(OrderingSuite):
    @pytest.fixture
    def ordering(self) -> Ordering:
        return Scattered()


class TestColumns(GeometricOrderingSuite):
    @pytest.fixture
    def ordering(self) -> Ordering:
        return Columns()
