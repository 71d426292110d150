"""The package as its users import it."""

from __future__ import annotations

import doctest
import importlib
import pickle
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest
import ringspan_registry
from ringspan_registry import errors

MODULES = [
    importlib.import_module(f"ringspan_registry.{found.name}")
    for found in pkgutil.iter_modules(ringspan_registry.__path__)
]


def test_importing_the_registry_imports_nothing_slow() -> None:
    slow = {"torch", "numpy", "pydantic", "pynvml", "platformdirs", "ringspan"}
    code = f"import sys, ringspan_registry; print(*({slow!r} & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert ran.stdout.split() == []


@pytest.mark.parametrize(
    "module", [ringspan_registry, *MODULES], ids=lambda module: module.__name__
)
def test_every_public_name_exists_and_is_listed_in_order(module: ModuleType) -> None:
    assert all(hasattr(module, name) for name in module.__all__)
    constants = [name for name in module.__all__ if name.isupper()]
    classes = [name for name in module.__all__ if name[0].isupper() and name not in constants]
    functions = [name for name in module.__all__ if name[0].islower()]
    assert module.__all__ == [*sorted(constants), *sorted(classes), *sorted(functions)]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_the_examples_in_the_documentation_are_true(module: ModuleType) -> None:
    assert doctest.testmod(module).failed == 0


def test_every_error_is_public() -> None:
    assert set(errors.__all__) <= set(ringspan_registry.__all__)


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_says_four_things_and_survives_pickling(name: str) -> None:
    error = getattr(errors, name)("colour", expected="red", got="blue", remedy="Repaint it")
    assert isinstance(error, errors.RingspanError)
    assert str(error) == "colour: expected red, got blue. Repaint it"
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.argument, again.remedy) == (str(error), "colour", "Repaint it")


def test_an_error_without_remedy_ends_with_what_came() -> None:
    error = errors.InvalidArgument("colour", expected="red", got="blue")
    assert str(error) == "colour: expected red, got blue"
    assert isinstance(error, ValueError)
