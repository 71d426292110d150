"""The standard tests on `triton`, interpreted where there is no GPU."""

from __future__ import annotations

from dataclasses import replace

import pytest
from ringspan.contracts import AttentionBackend, MaskCase
from ringspan.testing import AttentionBackendSuite, replaces
from ringspan.testing.suites.tiles import Tile
from ringspan.testing.suites.trial import Trial
from ringspan_triton import Triton


class TestTriton(AttentionBackendSuite):
    @pytest.fixture
    def backend(self) -> AttentionBackend:
        return Triton()

    @replaces("the interpreter takes half a minute for each thousand tiles: 50 of them on a CPU")
    @pytest.mark.parametrize("mask", sorted(MaskCase), ids=str)
    def test_very_many_tiles_are_exact(self, trial: Trial, tile: Tile, mask: MaskCase) -> None:
        many = 50 if trial.device.type == "cpu" else 65_537
        tiny = replace(tile, mask=mask, query_length=2, key_length=3, kv_heads=1)
        trial.exact_or_refused(replace(tiny, batch=many))
