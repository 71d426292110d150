"""The contract of a pattern: what attends to what, as a sum of parts.

A part says, for some query heads, which tokens see which; where several parts put the same two
tokens together, their multiplicities add. There are three kinds: sets in which everyone sees
everyone (`Cliques`), sets in which each token sees a run of its neighbours (`Windows`), and
pairs of blocks (`Blocks`). Causality is not a pattern's business: it is applied to every part,
by position.
"""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ringspan.contracts.documents import Documents
from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.held import Held
from ringspan.contracts.tokens import Coordinates, Sequence, Tokens

if TYPE_CHECKING:
    import numpy.typing as npt

    Positions = npt.NDArray[np.int64]
    Bools = npt.NDArray[np.bool_]

__all__ = ["Blocks", "Cliques", "Domain", "Listed", "Part", "Pattern", "Runs", "Windows"]


@dataclass(frozen=True, slots=True)
class Domain:
    """What a pattern is laid over: one sequence, or packed documents.

    `order(name, tokens)` gives, as int64 `[N]`, the token at each place along a named ordering.
    """

    tokens: Tokens
    heads: int
    """Query heads; head `h` reads key/value head `h // (heads // kv_heads)`."""
    kv_heads: int
    order: Callable[[str, Tokens], Positions]
    documents: Documents | None = None
    """Only patterns with `documents_at_once` ever see documents here."""
    causal: bool = False
    """For patterns of which something depends on it; the mask itself is applied to every part."""
    stored: Listed | None = None
    """Where a layout asks for work in blocks of storage, the tokens of each: of every token one.
    A pattern that knows of any two tokens whether one sees the other yields `Blocks` of these."""

    @property
    def N(self) -> int:  # noqa: N802 - the field's name for the number of tokens
        """Number of tokens."""
        return self.tokens.N

    @property
    def starts(self) -> Positions:
        """First position of each document; of the sequence, where there are none."""
        return np.zeros(1, np.int64) if self.documents is None else self.documents.starts

    @property
    def lengths(self) -> Positions:
        """Tokens of each document."""
        return np.array([self.N]) if self.documents is None else self.documents.lengths

    def segments(self, length: int) -> tuple[Positions, Positions]:
        """Every document cut into segments of `length` tokens: their starts and lengths.

        The last segment of a document may be short; none is empty.
        """
        counts = -(-self.lengths // length)
        number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        starts = np.repeat(self.starts, counts) + number * length
        ends = np.repeat(self.starts + self.lengths, counts)
        return starts, np.minimum(ends - starts, length)

    def alone(self) -> Iterator[tuple[Positions, Domain]]:
        """Every document as a domain of its own, with the starts of all documents like it."""
        if self.documents is None:
            yield self.starts, self
            return
        starts, lengths = self.starts, self.lengths
        if isinstance(self.tokens, Sequence):
            for length in np.unique(lengths[lengths > 0]).tolist():
                tokens: Tokens = Sequence(length)
                yield starts[lengths == length], self._on(tokens)
            return
        points = self.tokens.coordinates
        for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
            if length:
                tokens = Coordinates(points[start : start + length])
                yield np.array([start]), self._on(tokens)

    def _on(self, tokens: Tokens) -> Domain:
        return dataclasses.replace(self, tokens=tokens, documents=None, stored=None)


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """Sets of tokens in arithmetic progression: set `t` is `start[t] + step * (0 .. length[t])`."""

    start: Positions
    length: Positions
    step: int = 1

    @property
    def size(self) -> int:
        """Tokens of all sets."""
        return int(self.length.sum())

    def listed(self) -> Listed:
        """The same sets, token by token."""
        bounds = bounds_of(self.length)
        place = np.arange(bounds[-1]) - np.repeat(bounds[:-1], self.length)
        return Listed(np.repeat(self.start, self.length) + self.step * place, bounds)

    def shifted(self, starts: Positions) -> Runs:
        """The sets once for each of `starts`, moved there."""
        moved = (starts[:, None] + self.start).ravel()
        return Runs(moved, np.tile(self.length, len(starts)), self.step)


@dataclass(frozen=True, slots=True, eq=False)
class Listed:
    """Sets of tokens one after the other: set `t` is `rows[bounds[t] : bounds[t + 1]]`."""

    rows: Positions
    bounds: Positions

    @classmethod
    def of(cls, rows: Positions, lengths: Positions) -> Listed:
        """From the sets one after the other, and how long each is."""
        return cls(rows, bounds_of(lengths))

    @property
    def size(self) -> int:
        """Tokens of all sets."""
        return len(self.rows)

    def listed(self) -> Listed:
        """Itself."""
        return self

    def chosen(self, numbers: Positions) -> Listed:
        """The sets of these numbers, one after the other."""
        lengths = np.diff(self.bounds)[numbers]
        bounds = bounds_of(lengths)
        at = np.arange(bounds[-1]) + np.repeat(self.bounds[numbers] - bounds[:-1], lengths)
        return Listed(self.rows[at], bounds)

    def numbers(self, N: int) -> Positions:
        """For each of `N` tokens the number of its set, int64 `[N]`; each is in one set."""
        numbers = np.empty(N, np.int64)
        numbers[self.rows] = np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))
        return numbers

    def ascending(self) -> Listed:
        """The same sets, each in order of position."""
        return self._sorted(self.rows)

    def sorted_by(self, keys: Positions) -> Listed:
        """The same sets, each in ascending order of its tokens' keys, `[N]`."""
        return self._sorted(keys[self.rows])

    def _sorted(self, keys: Positions) -> Listed:
        descents = np.diff(keys) < 0
        borders = self.bounds[(self.bounds > 0) & (self.bounds < len(keys))]
        descents[borders - 1] = False
        if not descents.any():
            return self
        number = np.repeat(np.arange(len(self.bounds) - 1), np.diff(self.bounds))
        return Listed(self.rows[np.lexsort((keys, number))], self.bounds)

    def shifted(self, starts: Positions) -> Listed:
        """The sets once for each of `starts`, moved there."""
        moved = (starts[:, None] + self.rows).ravel()
        return Listed.of(moved, np.tile(np.diff(self.bounds), len(starts)))


def bounds_of(lengths: Positions) -> Positions:
    """Where runs of these lengths begin, one after the other, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


@dataclass(frozen=True, slots=True, eq=False)
class Cliques:
    """Disjoint sets of tokens, for some heads: within a set every token sees every token."""

    heads: tuple[int, ...]
    """Query heads that see these sets."""
    sets: Runs | Listed

    def shifted(self, starts: Positions) -> Cliques:
        """The part once for each of `starts`, moved there."""
        return Cliques(self.heads, self.sets.shifted(starts))


@dataclass(frozen=True, slots=True, eq=False)
class Windows:
    """Disjoint sets of tokens in which each token sees a run of its set.

    The set's token number `l` (counted from 0 in the order of the set) sees the tokens numbered
    `low .. high - 1` of the set, with one `low` and `high` for each row of `sets.listed()`.
    Within a set both must be non-decreasing; a token may see none.
    """

    heads: tuple[int, ...]
    sets: Runs | Listed
    low: Positions
    high: Positions

    def shifted(self, starts: Positions) -> Windows:
        """The part once for each of `starts`, moved there."""
        low, high = (np.tile(bound, len(starts)) for bound in (self.low, self.high))
        return Windows(self.heads, self.sets.shifted(starts), low, high)


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """Disjoint blocks of tokens, and for each block the blocks that it sees.

    Block `i` is set number `i` of `sets`, and sees the blocks
    `indices[indptr[i] : indptr[i + 1]]`, ascending and each at most once (compressed rows).
    """

    heads: tuple[int, ...]
    sets: Runs | Listed
    indptr: Positions
    indices: Positions
    seen: Callable[[Positions, Positions], Bools] | None = None
    """Which pairs within the active blocks count: takes positions of queries and of keys that
    broadcast against each other. None: all of them."""

    def shifted(self, starts: Positions) -> Blocks:
        """The part once for each of `starts`, moved there."""
        count, blocks = len(starts), len(self.indptr) - 1
        entries = len(self.indices)
        indptr = np.arange(count)[:, None] * entries + self.indptr[:-1]
        indices = (np.arange(count)[:, None] * blocks + self.indices).ravel()
        return Blocks(
            self.heads,
            self.sets.shifted(starts),
            np.append(indptr.ravel(), count * entries),
            indices,
            self._seen_from(starts),
        )

    def _seen_from(self, starts: Positions) -> Callable[[Positions, Positions], Bools] | None:
        if self.seen is None:
            return None
        seen, ordered = self.seen, np.sort(starts)

        def moved(query: Positions, key: Positions) -> Bools:
            # A document's tokens lie between its own start and the next one of its like.
            return seen(
                query - ordered[np.searchsorted(ordered, query, side="right") - 1],
                key - ordered[np.searchsorted(ordered, key, side="right") - 1],
            )

        return moved


Part = Cliques | Windows | Blocks


class Pattern(ABC):
    """What attends to what. Subclass as a frozen dataclass of plain values.

    Fields may be numbers, strings, booleans, None, tuples of those, `Held` data, and dataclasses
    of those: a pattern crosses the border of an operator as its `text`.

    Example:
        >>> @dataclass(frozen=True)
        ... class Pairs(Pattern):
        ...     def parts(self, domain):
        ...         yield Cliques(tuple(range(domain.heads)), Runs(*domain.segments(2)))
    """

    documents_at_once: ClassVar[bool] = False
    """Whether `parts` minds `domain.documents`. If not, it is asked for each document alone."""
    takes_key_padding: ClassVar[bool] = True
    """Whether key padding leaves a meaning to the pattern; if not, it is refused by name."""

    @abstractmethod
    def parts(self, domain: Domain) -> Iterable[Part]:
        """Which tokens see which, per group of query heads.

        Within one part, a head occurs once, and no token is a query in two sets.
        """

    def check(self, domain: Domain) -> None:  # noqa: B027 - most patterns fit any domain
        """Raises `InvalidArgument` where the pattern cannot be laid over `domain`.

        Called before any work; `domain` is the whole call's, documents included.
        """

    def null_keys(self, domain: Domain) -> Positions | None:
        """For each query head and token, how many keys of score 0 and value 0 it also sees.

        int64 `[heads, N]`, or None: no such keys. They enlarge the normaliser as a sink does.
        """
        return None

    def __post_init__(self) -> None:
        # Made once and early: `torch.compile` turns integers that differ between two patterns
        # into symbols, which have no text. A subclass with its own checks calls this at the end.
        object.__setattr__(self, "_text", self._make_text())

    def __getstate__(self) -> dict[str, Any]:
        # The text names held data by handle, and a copy's data have handles of their own.
        return {name: value for name, value in self.__dict__.items() if name != "_text"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        object.__setattr__(self, "_text", self._make_text())

    @property
    def text(self) -> str:
        """A literal from which `Pattern.from_literal` builds an equal pattern."""
        made: str = self.__dict__["_text"] if "_text" in self.__dict__ else self._make_text()
        return made

    @property
    def fingerprint(self) -> str:
        """Equal for equal patterns, also on other ranks, where held data have other handles."""
        return re.sub(r"([0-9a-f]{32})\.\d+", r"\1", self.text)

    def _make_text(self) -> str:
        return _object(self)

    @staticmethod
    def from_literal(literal: dict[str, Any]) -> Pattern:
        """The inverse of `text`, after `ast.literal_eval`."""
        pattern: Pattern = _build(literal)
        return pattern


# f-strings rather than json: torch.compile traces through them, so that a pattern of constants may
# also be built inside a compiled function. Only objects are dictionaries.
def _object(value: Any) -> str:
    kind = type(value)
    if "<locals>" in kind.__qualname__ or not dataclasses.is_dataclass(value):
        raise InvalidArgument(
            kind.__name__,
            expected="a frozen dataclass at the top level of a module: patterns are built again "
            "from their text",
            got=f"the class {kind.__qualname__}",
            remedy="Decorate it with @dataclass(frozen=True) and move it out of any function",
        )
    names = [field.name for field in dataclasses.fields(value) if field.init]
    fields = "".join(f"{name!r}: {_text(name, getattr(value, name))}, " for name in names)
    return f"{{'of': {_path(kind)!r}, 'with': {{{fields}}}}}"


def _path(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _text(name: str, value: Any) -> str:
    if isinstance(value, Held):
        return f"{{'held': {_path(type(value))!r}, 'handle': {value.handle!r}}}"
    if isinstance(value, tuple):
        return "(" + "".join(f"{_text(name, item)}, " for item in value) + ")"
    if value is None or isinstance(value, bool | str):
        return repr(value)
    # An IntEnum is an integer, but its text is not. A symbol of torch.compile is no int.
    if isinstance(value, int | float) and value - value == 0:
        return repr(value) if type(value) in (int, float) else repr(value + 0)
    if dataclasses.is_dataclass(value):
        return _object(value)
    raise InvalidArgument(
        name,
        expected="a finite number, string, boolean, None, Held data, a dataclass or a tuple of "
        "those, as a pattern's field",
        got=f"{type(value).__name__} {value!r}",
    )


def _build(literal: Any) -> Any:
    if isinstance(literal, tuple):
        return tuple(_build(item) for item in literal)
    if not isinstance(literal, dict):
        return literal
    if "held" in literal:
        return _class(literal["held"]).find(literal["handle"])
    fields = {name: _build(value) for name, value in literal["with"].items()}
    return _class(literal["of"])(**fields)


def _class(path: str) -> Any:
    import importlib

    module, qualname = path.split(":")
    target: Any = importlib.import_module(module)
    for part in qualname.split("."):
        target = getattr(target, part)
    return target
