"""Which extra brings a missing module."""

from __future__ import annotations

from importlib.util import find_spec

from ringspan.contracts.errors import RingspanError

__all__ = ["missing", "require"]

_EXTRA_OF = {
    "typer": "cli",
    "rich": "cli",
    "safetensors": "cli",
    "matplotlib": "plot",
    "pytest": "testing",
    "hypothesis": "testing",
}


def missing(*modules: str) -> RingspanError | None:
    """The error for those of `modules` that are not installed; None where all are."""
    absent = [module for module in modules if find_spec(module) is None]
    if not absent:
        return None
    extras = ",".join(sorted({_EXTRA_OF[module] for module in absent}))
    return RingspanError(
        "ringspan",
        expected=f"{' and '.join(modules)} to be installed",
        got=f"no {' and no '.join(absent)}",
        remedy=f"pip install 'ringspan-core[{extras}]'",
    )


def require(*modules: str) -> None:
    """Raises `RingspanError` with the extra to install unless all `modules` are installed."""
    error = missing(*modules)
    if error is not None:
        raise error
