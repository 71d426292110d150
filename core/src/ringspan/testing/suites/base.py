"""What a suite is: standard tests that nobody drops in silence.

A subclass may replace a standard test or omit it, where it says why; the pytest plugin shows the
reason in its report, and fails the collection of a subclass that gives none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, TypeVar

import pytest

from ringspan.contracts.errors import InvalidArgument

__all__ = ["Departure", "Suite", "departures", "omitted", "replaces"]

Test = TypeVar("Test", bound=Callable[..., Any])


class Suite:
    """The base of every suite. `published=True` makes the tests of a class standard."""

    standard: ClassVar[Mapping[str, Callable[..., Any]]] = MappingProxyType({})
    """Name -> standard test, as it was published: deleting or patching one later changes nothing
    here."""

    def __init_subclass__(cls, *, published: bool = False, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        standard = {
            name: test
            for base in cls.__bases__
            if issubclass(base, Suite)
            for name, test in base.standard.items()
        }
        if published:
            standard |= {name: test for name, test in vars(cls).items() if name.startswith("test_")}
        cls.standard = MappingProxyType(standard)


class Departure(NamedTuple):
    """A standard test that a class does not run as it was published."""

    name: str
    reason: str
    """Empty where none was given."""


def departures(suite: type[Suite]) -> Iterator[Departure]:
    """The standard tests that `suite` replaces, omits or has lost."""
    for name, test in suite.standard.items():
        found = inspect.getattr_static(suite, name, None)
        if found is not test:
            yield Departure(name, getattr(found, "replaces", ""))


def replaces(reason: str) -> Callable[[Test], Test]:
    """Marks a test that stands in for the standard test of the same name.

    Args:
        reason: why the standard test does not fit; shown in the report.

    Raises:
        InvalidArgument: no reason.

    Example:
        >>> class TestMine(AttentionBackendSuite):
        ...     @replaces("the kernel takes two tiles or more")
        ...     def test_very_many_tiles_are_exact(self, backend): ...
    """
    if not isinstance(reason, str) or not reason.strip():
        raise InvalidArgument(
            "reason", expected="why the standard test does not fit", got=repr(reason)
        )

    def mark(test: Test) -> Test:
        test.replaces = reason  # type: ignore[attr-defined]
        return test

    return mark


def omitted(reason: str) -> Callable[[Any], None]:
    """Stands in for a standard test that is left out; it is reported as skipped, with the reason.

    Raises:
        InvalidArgument: no reason.

    Example:
        >>> class TestMine(AttentionBackendSuite):
        ...     test_very_many_tiles_are_exact = omitted("a simulator, hours per tile")
    """

    @replaces(reason)
    def omit(self: Any) -> None:
        pytest.skip(reason)

    return omit
