"""A table as plain data, and as text."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Table"]


class Table(NamedTuple):
    """Text only, so that a page or a terminal can show it as it is."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __str__(self) -> str:
        """In Markdown, padded so that columns stand below each other."""
        widths = [max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            for row in (self.header, tuple("-" * width for width in widths), *self.rows)
        ]
        return "\n".join([self.title, "", *(f"{line} |" for line in lines)])
