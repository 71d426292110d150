"""`host` passes the standard tests."""

from __future__ import annotations

import pytest
from ringspan.contracts import Communicator
from ringspan.testing import VirtualCommunicatorSuite
from ringspan_host import Host


class TestHost(VirtualCommunicatorSuite):
    @pytest.fixture
    def communicator(self) -> Communicator:
        return Host()
