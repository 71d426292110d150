"""The contract of a pattern: what attends to what, as sets of tokens that see each other."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ringspan.contracts.tokens import Tokens

if TYPE_CHECKING:
    import numpy.typing as npt

    Positions = npt.NDArray[np.int64]

__all__ = ["Cliques", "Domain", "Pattern"]


@dataclass(frozen=True, slots=True)
class Domain:
    """What a pattern is laid over.

    `order(name, tokens)` gives, as int64 `[N]`, the token at each place along a named ordering.
    """

    tokens: Tokens
    kv_heads: int
    order: Callable[[str, Tokens], Positions]

    @property
    def N(self) -> int:  # noqa: N802 - the field's name for the number of tokens
        """Number of tokens."""
        return self.tokens.N


@dataclass(frozen=True, slots=True, eq=False)
class Cliques:
    """Disjoint sets of tokens, for some heads: within a set every token sees every token.

    Set `t` holds the positions `rows[bounds[t] : bounds[t + 1]]`, ascending. Where sets of
    several `Cliques` put the same two tokens together, their multiplicities add.
    """

    heads: tuple[int, ...]
    """Key/value heads that see these sets."""
    rows: Positions
    bounds: Positions

    @classmethod
    def of(cls, heads: tuple[int, ...], rows: Positions, lengths: Positions) -> Cliques:
        """From the sets one after the other; positions need not be sorted within a set."""
        bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
        descents = np.diff(rows) <= 0
        borders = bounds[(bounds > 0) & (bounds < len(rows))]
        descents[borders - 1] = False
        if descents.any():
            rows = rows[np.lexsort((rows, np.repeat(np.arange(len(lengths)), lengths)))]
        return cls(heads, rows, bounds)


class Pattern(ABC):
    """What attends to what. Subclass as a frozen dataclass of plain values.

    Fields may be numbers, strings, booleans, None, tuples of those, and dataclasses of those:
    a pattern crosses the border of an operator as its `text`.
    """

    @abstractmethod
    def cliques(self, domain: Domain) -> Iterable[Cliques]:
        """The sets of tokens that see each other, per group of key/value heads."""

    def __post_init__(self) -> None:
        # Made once and early: `torch.compile` turns integers that differ between two patterns
        # into symbols, which have no text. A subclass with its own checks calls this at the end.
        object.__setattr__(self, "_text", self._make_text())

    @property
    def text(self) -> str:
        """A literal from which `Pattern.from_literal` builds an equal pattern."""
        made: str = self.__dict__["_text"] if "_text" in self.__dict__ else self._make_text()
        return made

    def _make_text(self) -> str:
        return f"({_path(self)!r}, {_fields(self)})"

    @staticmethod
    def from_literal(literal: tuple[str, tuple[Any, ...]]) -> Pattern:
        """The inverse of `text`, after `ast.literal_eval`."""
        pattern: Pattern = _build(literal)
        return pattern


# f-strings rather than json: torch.compile traces through them, so that a pattern may also be
# built inside a compiled function.
def _path(value: object) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def _fields(value: Any) -> str:
    return "(" + "".join(f"{_text(getattr(value, name))}, " for name in value.__match_args__) + ")"


def _text(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return f"({_path(value)!r}, {_fields(value)})"
    if isinstance(value, tuple):
        return "(" + "".join(f"{_text(item)}, " for item in value) + ")"
    return repr(value)


def _is_object(value: object) -> bool:
    return (
        isinstance(value, tuple)
        and len(value) == 2
        and isinstance(value[0], str)
        and ":" in value[0]
    )


def _build(literal: Any) -> Any:
    if not isinstance(literal, tuple):
        return literal
    if not _is_object(literal):
        return tuple(_build(item) for item in literal)
    import importlib

    module, qualname = literal[0].split(":")
    target: Any = importlib.import_module(module)
    for part in qualname.split("."):
        target = getattr(target, part)
    return target(*(_build(item) for item in literal[1]))
