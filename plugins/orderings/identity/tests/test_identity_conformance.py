"""The plain scans pass the standard tests of an ordering."""

from __future__ import annotations

import pytest
from ringspan.contracts import Ordering
from ringspan.testing import GeometricOrderingSuite, OrderingSuite
from ringspan_identity import Identity, RowMajor, Snake, Tiles


class TestIdentity(OrderingSuite):
    @pytest.fixture
    def ordering(self) -> Ordering:
        return Identity()


class TestRowMajor(GeometricOrderingSuite):
    @pytest.fixture
    def ordering(self) -> Ordering:
        return RowMajor()


class TestSnake(GeometricOrderingSuite):
    @pytest.fixture
    def ordering(self) -> Ordering:
        return Snake()


class TestTiles(GeometricOrderingSuite):
    @pytest.fixture(params=[1, 3, 8])
    def ordering(self, request: pytest.FixtureRequest) -> Ordering:
        return Tiles(request.param)
