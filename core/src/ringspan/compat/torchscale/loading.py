"""State dicts are checked whole before anything of them is loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ringspan.contracts.errors import InvalidArgument

__all__ = ["check_keys"]


def check_keys(own: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raises `InvalidArgument` unless names and shapes are those of `own`."""
    missing, unexpected = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    reshaped = [
        f"{name} {list(given[name].shape)} instead of {list(own[name].shape)}"
        for name in sorted(own.keys() & given.keys())
        if given[name].shape != own[name].shape
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    if any(faults.values()):
        raise InvalidArgument(
            "state_dict",
            expected=", ".join(sorted(own)),
            got="; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names),
            remedy=_remedy(own, given),
        )


def _remedy(own: Iterable[str], given: Iterable[str]) -> str:
    names = list(own)
    for name in given:
        prefix = name.removesuffix(names[0])
        if prefix and prefix != name and {prefix + each for each in names} <= set(given):
            return f"Take those of {prefix!r} alone, without it"
    return "Load the state dict of one DilatedAttention, built with the same subln and xpos"
