"""What a benchmark of the ring is asked to do, checked before any process meets another."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ringspan.bench.configuration import NOBODY, POSITIONS, pattern_at
from ringspan.catalogue import catalogue
from ringspan.contracts.errors import InvalidArgument, UnknownProvider

__all__ = ["Settings"]


@dataclass(frozen=True, slots=True)
class Settings:
    """One benchmark.

    Raises:
        InvalidArgument: an option that does not fit, by its name on the command line.
        UnknownProvider: an ordering or communicator that no installed plugin offers.
    """

    max_tokens: int = 65536
    min_tokens: int = 8192
    patterns: tuple[str, ...] = ("Dilated.geometric(N)", "Dense()")
    """As Python writes them; `N` stands for the number of tokens."""
    causal: bool = False
    orderings: tuple[str, ...] = (POSITIONS,)
    """In which order tokens are stored, and so which rank holds which."""
    along: tuple[str, ...] = (POSITIONS,)
    """Along which order a pattern is taken, and so which tokens see each other."""
    grid: bool = False
    communicators: tuple[str, ...] = ()
    """None: every one that can serve."""
    heads: int = 8
    kv_heads: int | None = None
    head_dim: int = 64
    batch: int = 1
    dtype: str | None = None
    backward: bool = True
    repeats: int = 5
    patience: float = 30.0
    check_tokens: int = 4096
    memory_limit: float | None = None
    """GiB per rank."""
    device: str | None = None
    process_group: str | None = None
    seed: int = 0
    json: Path | None = None

    def __post_init__(self) -> None:
        counts = ("min_tokens", "heads", "head_dim", "batch", "repeats", "check_tokens")
        for name in counts:
            _at_least(name, getattr(self, name), 1)
        _at_least("max_tokens", self.max_tokens, self.min_tokens)
        if self.kv_heads is not None and (self.kv_heads < 1 or self.heads % self.kv_heads):
            expected = f"a divisor of --heads {self.heads}"
            raise InvalidArgument("--kv-heads", expected=expected, got=str(self.kv_heads))
        for name in ("patience", "memory_limit"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidArgument(_option(name), expected="a number > 0", got=str(value))
        for name in ("patterns", "orderings", "along", "communicators"):
            _check_names(name, getattr(self, name))
        for pattern in self.patterns:
            pattern_at(pattern, self.min_tokens)
        for name in ("orderings", "along"):
            for ordering in getattr(self, name):
                _check_ordering(name, ordering, grid=self.grid)
        for communicator in self.communicators:
            if communicator != NOBODY:
                _check_offered("communicators", "communicator", communicator)

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens, doubling from the smallest on."""
        lengths = [self.min_tokens]
        while 2 * lengths[-1] <= self.max_tokens:
            lengths.append(2 * lengths[-1])
        return tuple(lengths)

    def dtype_on(self, device: torch.device) -> torch.dtype:
        """As asked for; else float32 on a CPU and bfloat16 elsewhere."""
        name = self.dtype or ("float32" if device.type == "cpu" else "bfloat16")
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    def as_dict(self) -> dict[str, Any]:
        """As JSON has them."""
        return dataclasses.asdict(self) | {"json": None if self.json is None else str(self.json)}


def _option(name: str) -> str:
    return f"--{'pattern' if name == 'patterns' else name.replace('_', '-')}"


def _at_least(name: str, value: int, least: int) -> None:
    if value < least:
        raise InvalidArgument(_option(name), expected=f"an integer >= {least}", got=str(value))


def _check_names(name: str, values: tuple[str, ...]) -> None:
    if not values and name != "communicators":
        raise InvalidArgument(_option(name), expected="at least one name", got="none")
    if len(set(values)) < len(values):
        raise InvalidArgument(_option(name), expected="each name once", got=", ".join(values))


def _check_offered(name: str, kind: str, provider: str) -> None:
    known = catalogue().names(kind)
    if provider not in known:
        raise UnknownProvider(
            _option(name), expected=f"one of {', '.join(known)}", got=repr(provider)
        )


def _check_ordering(name: str, ordering: str, *, grid: bool) -> None:
    """Refuses an ordering that nobody offers, or that needs a grid where there is none."""
    from ringspan.plan.layout import Layout

    if ordering == POSITIONS:
        return
    _check_offered(name, "ordering", ordering)
    if grid:
        return
    try:
        Layout(4, ordering=ordering).positions(0)
    except InvalidArgument as error:
        raise InvalidArgument(
            _option(name),
            expected=f"--grid or --compare beside {ordering}",
            got=str(error).partition("\n")[0].partition(". ")[0],
        ) from None
