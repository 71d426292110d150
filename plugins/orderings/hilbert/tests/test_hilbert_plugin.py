"""The plugin as the registry finds it, and its documentation."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

import pytest
import ringspan_hilbert
from ringspan.contracts import ENTRY_POINT_GROUP, DeviceInfo

KERNELS = {"kernels"} if find_spec("triton") is None else set()
MODULES = [
    name for _, name, _ in pkgutil.iter_modules(ringspan_hilbert.__path__) if name not in KERNELS
]


def test_the_entry_point_leads_to_the_plugin() -> None:
    (found,) = entry_points(group=ENTRY_POINT_GROUP, name="hilbert")
    assert found.load() is ringspan_hilbert


def test_it_offers_hilbert_morton_and_gilbert() -> None:
    offered = ringspan_hilbert.ringspan_orderings()
    assert [ordering.name for ordering in offered] == ["hilbert", "morton", "gilbert"]


@pytest.mark.parametrize("device", ["cpu", "cuda", "xpu"])
def test_every_ordering_is_usable_on_every_device(device: str) -> None:
    for ordering in ringspan_hilbert.ringspan_orderings():
        assert ordering.probe(DeviceInfo(type=device)).usable


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_of_a_module_run(module: str) -> None:
    assert doctest.testmod(importlib.import_module(f"ringspan_hilbert.{module}")).failed == 0


def test_the_examples_of_the_readme_run() -> None:
    readme = Path(__file__).parents[1] / "README.md"
    results = doctest.testfile(str(readme), module_relative=False)
    assert results.attempted > 0
    assert results.failed == 0
