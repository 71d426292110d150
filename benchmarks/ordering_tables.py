"""Tables of figures and targets, as data that JSON holds and a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Table", "Target", "markdown", "shown"]


@dataclass(frozen=True)
class Table:
    """Rows of numbers and words under a header; `name` says where on the page they stand."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, name: str, title: str, header: Sequence[str], rows: Any) -> Table:
        """From any sequences, such as JSON's."""
        return cls(name, title, tuple(header), tuple(tuple(row) for row in rows))

    def cell(self, row: str, column: str) -> Any:
        """The value in the row that begins with `row`."""
        (found,) = [each for each in self.rows if each[0] == row]
        return found[self.header.index(column)]


@dataclass(frozen=True)
class Target:
    """What a figure should reach, beside what it did."""

    figure: str
    kind: str
    """`"count"`: the same on every machine; `"time"`: of the machine that measured it."""
    measured: float
    bound: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """Whether it was reached."""
        return self.measured >= self.bound if self.at_least else self.measured <= self.bound

    @property
    def row(self) -> tuple[str, str, float, str]:
        """For the table of targets."""
        sign = "at least" if self.at_least else "at most"
        return self.figure, f"{sign} {self.bound:g}", self.measured, "met" if self.met else "missed"


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown."""
    lines = [list(header), ["---"] * len(header), *([shown(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(cell: Any) -> str:
    """Counts with commas, other numbers to three decimals or, where tiny, digits; words as is."""
    if isinstance(cell, bool) or cell is None:
        return {True: "yes", False: "no", None: ""}[cell]
    if isinstance(cell, int):
        return f"{cell:,}"
    if isinstance(cell, float):
        return f"{cell:.1e}" if 0 < abs(cell) < 0.001 else f"{cell:.3f}"
    return str(cell)
