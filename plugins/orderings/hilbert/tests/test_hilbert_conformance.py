"""All curves pass the standard tests of an ordering."""

from __future__ import annotations

import pytest
from ringspan.contracts import Ordering
from ringspan.testing import GeometricOrderingSuite
from ringspan_hilbert import Gilbert, Hilbert, Morton


class TestHilbert(GeometricOrderingSuite):
    @pytest.fixture
    def ordering(self) -> Ordering:
        return Hilbert()


class TestMorton(GeometricOrderingSuite):
    @pytest.fixture
    def ordering(self) -> Ordering:
        return Morton()


class TestGilbert(GeometricOrderingSuite):
    @pytest.fixture
    def ordering(self) -> Ordering:
        return Gilbert()
