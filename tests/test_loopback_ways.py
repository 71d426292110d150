"""Rings of threads on a kernel that takes rows in place, and one that gathers and merges them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import ringspan as rs
from hypothesis import given, settings
from hypothesis import strategies as st
from ringspan.catalogue import catalogue
from ringspan.testing.case import Case
from ringspan.testing.loopback import Loopback
from ringspan.testing.site import plugged_in
from ringspan.testing.strategies import cases

from tests.test_ring_modes import EVERYTHING, check, shapes
from tests.worlds import Run, worlds

WORLD_SIZES = (1, 2, 3, 5)
WAYS = (
    {"backend": "toy-whole", "fused": "off"},
    {"backend": "toy-whole", "fused": "toy-whole"},
    {"backend": "manual", "fused": "toy-whole"},
)


@pytest.fixture(scope="module")
def run_loopback() -> Iterator[Run]:
    """As in `test_loopback_rings`, where the toy that takes everything is a plugin."""
    with plugged_in("toy-whole", "ringspan.testing.toy_whole"):
        catalogue.cache_clear()
        with worlds(Loopback) as run:
            yield run
    catalogue.cache_clear()


@pytest.mark.filterwarnings("ignore:torchscale moves the output")
@settings(max_examples=60)
@given(cases(max_N=64), st.sampled_from(WORLD_SIZES), st.sampled_from(WAYS), st.data())
def test_any_call_is_exact_in_every_way_at_any_world_size(
    run_loopback: Run, case: Case, world_size: int, way: dict[str, str], data: st.DataObject
) -> None:
    case = replace(case, positions=None, cross=None, stored=None)
    with rs.use(**way):
        check(run_loopback, case, data.draw(shapes(case, world_size)))


@pytest.mark.parametrize("world_size", WORLD_SIZES)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_all_modes_at_once_are_exact_in_every_way(
    run_loopback: Run, world_size: int, way: dict[str, str]
) -> None:
    with rs.use(**way):
        check(run_loopback, EVERYTHING, {"world_size": world_size})
