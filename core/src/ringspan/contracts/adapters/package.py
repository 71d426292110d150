"""A Python package that holds a kernel: whether it is there, recent enough, and takes our calls."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import ModuleType

__all__ = ["KernelPackage", "parameters"]

_VERSION = re.compile(r"(\d+)(?:\.(\d+))?(?:\.(\d+))?(?:(a|b|rc)(\d+))?")
_STAGES = {"a": -3, "b": -2, "rc": -1, None: 0}


@dataclass(frozen=True)
class KernelPackage:
    """What an adapter needs of somebody else's package. Nothing is imported before it is asked.

    Example:
        >>> absent = KernelPackage("no-such-kernel", "no_such_kernel", remedy="build it")
        >>> absent.missing()
        'no-such-kernel is not installed'
    """

    distribution: str
    """As pip names it."""
    module: str
    """What is imported, with dots."""
    remedy: str = ""
    """How a user gets it."""
    at_least: str = ""
    """The first version that the adapter knows; empty: any."""
    below: str = ""
    """The first version that it does not know any more; empty: none."""
    calls: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The functions that the adapter calls, each with the names of the parameters it passes."""

    @property
    def version(self) -> str:
        """The installed version; empty where no such distribution is installed."""
        try:
            return importlib.metadata.version(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            return ""

    def load(self) -> ModuleType:
        """The module, imported when first asked for."""
        return importlib.import_module(self.module)

    def missing(self) -> str:
        """Why the adapter cannot call the package here; empty where it can."""
        return self._wrong_version() or self._not_importable() or self._other_calls()

    def _wrong_version(self) -> str:
        version = self.version
        if not version or not (self.at_least or self.below):
            return ""
        early = bool(self.at_least) and _order(version) < _order(self.at_least)
        if not early and not self._late(version):
            return ""
        ends = [f">={self.at_least}"] * bool(self.at_least) + [f"<{self.below}"] * bool(self.below)
        return f"{self.distribution} {version} (supported: {','.join(ends)})"

    def _late(self, version: str) -> bool:
        if not self.below:
            return False
        found, border = _order(version), _order(self.below)
        # A beta of a version belongs to it, unless the border itself is a beta.
        return found >= border or (border[3] == 0 and found[:3] == border[:3])

    def _not_importable(self) -> str:
        try:
            self.load()
        except ModuleNotFoundError as error:
            if not (self.module + ".").startswith(f"{error.name}."):
                return f"{self.module} needs a module that is missing: {error.name}"
            if self.version:
                return f"{self.distribution} {self.version} holds no module {self.module}"
            return f"{self.distribution} is not installed"
        except (ImportError, OSError, RuntimeError) as error:
            # Libraries built for another torch or CUDA, and operators that another package has
            # registered under the same names.
            return f"{self.module} cannot be imported: {str(error).strip().splitlines()[0]}"
        return ""

    def _other_calls(self) -> str:
        module = self.load()
        for name, passed in self.calls.items():
            function = getattr(module, name, None)
            if function is None:
                return f"{self._named} has no {name}"
            if unknown := passed - parameters(function):
                return f"{name} of {self._named} takes no {', '.join(sorted(unknown))}"
        return ""

    @property
    def _named(self) -> str:
        return f"{self.distribution} {self.version}".strip()


def parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names of a function's parameters; of a custom operator, those of its schema.

    Example:
        >>> sorted(parameters(lambda query, key: None))
        ['key', 'query']
    """
    operator = getattr(function, "_opoverload", None)
    if operator is not None:
        return frozenset(argument.name for argument in operator._schema.arguments)
    return frozenset(inspect.signature(function).parameters)


def _order(version: str) -> tuple[int, ...]:
    """Versions in order: a beta before its release, a post-release like it."""
    found = _VERSION.match(version)
    if found is None:
        return (0,)
    major, minor, patch, stage, number = found.groups()
    return (int(major), int(minor or 0), int(patch or 0), _STAGES[stage], int(number or 0))
