"""The standard tests on `triton`, interpreted where there is no GPU."""

from __future__ import annotations

import pytest
from ringspan.contracts import AttentionBackend
from ringspan.testing import AttentionBackendSuite
from ringspan_triton import Triton


class TestTriton(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Triton()
