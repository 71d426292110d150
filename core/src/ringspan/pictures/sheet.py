"""What pictures are drawn on, and how they become files."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ringspan.contracts.errors import InvalidArgument
from ringspan.contracts.tokens import Grid, Tokens
from ringspan.patterns.along import Along

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ringspan.contracts.pattern import Pattern

__all__ = [
    "check_drawable",
    "check_head",
    "check_orderings",
    "check_out",
    "named",
    "named_tokens",
    "new_figure",
    "png",
    "save",
]

SUFFIXES = (".png", ".svg")


def check_drawable(tokens: Tokens, most: int) -> None:
    """Raises `InvalidArgument` unless there are `1 .. most` tokens."""
    if not 1 <= tokens.N <= most:
        raise InvalidArgument(
            "tokens", expected=f"1 .. {most:,} tokens to draw", got=f"{tokens.N:,}"
        )


def check_head(head: int, heads: int, counted: str) -> None:
    """Raises `InvalidArgument` unless `head` is one of `heads`, an argument called `counted`."""
    if heads < 1:
        raise InvalidArgument(counted, expected="an integer >= 1", got=str(heads))
    if not 0 <= head < heads:
        raise InvalidArgument("head", expected=f"0 .. {heads - 1}", got=str(head))


def check_orderings(names: Sequence[str]) -> None:
    """Raises `InvalidArgument` unless there are names, each once."""
    if not names or len(set(names)) < len(names):
        raise InvalidArgument(
            "orderings", expected="one or more different names, or None", got=repr(names)
        )


def named(pattern: Pattern) -> str:
    """A pattern as one would write it, without what is so by default.

    Example:
        >>> from ringspan import Neighborhood
        >>> named(Neighborhood(7, edges="shift"))
        "Neighborhood(window=7, edges='shift')"
    """
    if not dataclasses.is_dataclass(pattern):
        return repr(pattern)
    said = []
    for field in dataclasses.fields(pattern):
        value = getattr(pattern, field.name)
        if value != field.default:
            plain = isinstance(value, Along) and value.plain
            said.append(f"{field.name}={value.ordering if plain else value!r}")
    return f"{type(pattern).__name__}({', '.join(said)})"


def named_tokens(tokens: Tokens) -> str:
    """What the tokens are, in few words."""
    if isinstance(tokens, Grid):
        return f"{' x '.join(map(str, tokens.shape))} tokens"
    return f"{tokens.N:,} tokens" if tokens.coordinates is None else f"{tokens.N:,} points"


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, sizes in inches."""
    # The object API: unlike pyplot it needs no display and leaves the process's state alone.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    """The picture as the bytes of a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=150)
    return stream.getvalue()


def check_out(path: Path) -> None:
    """Raises `InvalidArgument` unless a PNG or SVG file can be put at `path`."""
    if path.suffix.lower() not in SUFFIXES:
        raise InvalidArgument("out", expected="a file name ending in .png or .svg", got=str(path))
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise InvalidArgument("out", expected="a file in an existing folder", got=str(path))


def save(figure: Figure, path: Path) -> None:
    """Draws the picture as PNG or SVG, by the suffix of `path`, then writes the file."""
    check_out(path)
    stream = io.BytesIO()
    figure.savefig(stream, format=path.suffix.lower()[1:], dpi=150)
    try:
        path.write_bytes(stream.getvalue())
    except OSError as error:
        raise InvalidArgument(
            "out", expected="a file that can be written", got=f"{path}: {error.strerror}"
        ) from error
