"""What is compared: patterns, the curves that they are taken along, storage, communicators."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from itertools import product
from math import isqrt
from typing import TYPE_CHECKING

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.tokens import Grid, Sequence
from ringspan.patterns.written import pattern_written

if TYPE_CHECKING:
    from ringspan.bench.settings import Settings
    from ringspan.contracts.pattern import Pattern
    from ringspan.contracts.tokens import Tokens

__all__ = [
    "NOBODY",
    "POSITIONS",
    "Configuration",
    "LeftOut",
    "configurations",
    "pattern_at",
    "tokens_of",
]

POSITIONS = "none"
"""In place of an ordering: as the tokens are numbered, row by row on a grid."""
NOBODY = "none"
"""In place of a communicator: one process has nobody to talk to."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """One of the things compared; everything is by name, so that it travels and prints."""

    pattern: str
    along: str
    """Along which order the pattern is taken: tokens see others in another order."""
    stored: str
    """In which order tokens are stored: ranks hold others, results stay the same."""
    communicator: str

    def pattern_for(self, N: int) -> Pattern:
        """The pattern for `N` tokens."""
        return _taken(pattern_at(self.pattern, N), self.along)

    @property
    def ordering(self) -> str | None:
        """As a `Layout` takes it."""
        return None if self.stored == POSITIONS else self.stored

    @property
    def request(self) -> str | None:
        """As `attention` takes the communicator."""
        return None if self.communicator == NOBODY else self.communicator

    def __str__(self) -> str:
        pattern = self.pattern if self.along == POSITIONS else f"{self.pattern} along {self.along}"
        stored = "" if self.stored == POSITIONS else f", stored by {self.stored}"
        return f"{pattern}{stored}, communicator {self.communicator}"


@dataclass(frozen=True, slots=True)
class LeftOut:
    """What is not compared, and why."""

    what: str
    why: str


def configurations(
    settings: Settings, communicators: tuple[str, ...]
) -> tuple[tuple[Configuration, ...], tuple[LeftOut, ...]]:
    """Everything that `settings` asks to compare; and patterns that no curve can carry."""
    found: list[Configuration] = []
    left_out: list[LeftOut] = []
    for pattern, along in product(settings.patterns, settings.along):
        try:
            _taken(pattern_at(pattern, settings.min_tokens), along)
        except InvalidArgument as error:
            left_out.append(LeftOut(f"{pattern} along {along}", str(error)))
            continue
        found += (
            Configuration(pattern, along, stored, communicator)
            for stored, communicator in product(settings.orderings, communicators)
        )
    return tuple(found), tuple(left_out)


def pattern_at(text: str, N: int) -> Pattern:
    """The pattern that is written, for `N` tokens.

    Example:
        >>> pattern_at("Dilated.geometric(N)", 4096).segment_lengths
        (2048, 4096)
    """
    return pattern_written(re.sub(r"\bN\b", str(N), text))


def tokens_of(N: int, *, grid: bool) -> Tokens:
    """A plain sequence, or a grid as square as the divisors of `N` allow.

    Example:
        >>> tokens_of(32, grid=True)
        Grid(4, 8)
    """
    if not grid:
        return Sequence(N)
    height = next(side for side in range(isqrt(N), 0, -1) if N % side == 0)
    return Grid(height, N // height)


def _taken(pattern: Pattern, along: str) -> Pattern:
    if along == POSITIONS:
        return pattern
    own = getattr(pattern, "along", ...)
    if own is not None:
        got = f"{pattern!r}, which takes none" if own is ... else f"{pattern!r}"
        raise InvalidArgument("--along", expected="a pattern without a curve of its own", got=got)
    return dataclasses.replace(pattern, along=along)  # type: ignore[type-var]
