"""Zigzag and striped pass the standard tests of an ordering."""

from __future__ import annotations

import pytest
from ringspan.contracts import Ordering
from ringspan.testing import OrderingSuite
from ringspan_balanced import Striped, Zigzag


class TestZigzag(OrderingSuite):
    @pytest.fixture
    def ordering(self) -> Ordering:
        return Zigzag()


class TestStriped(OrderingSuite):
    @pytest.fixture
    def ordering(self) -> Ordering:
        return Striped()
