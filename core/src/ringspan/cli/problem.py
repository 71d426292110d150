"""Options that describe an attention problem, turned into Ringspan's own objects."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    from ringspan.contracts.pattern import Pattern
    from ringspan.contracts.tokens import Grid, Tokens
    from ringspan.engine.explanation import Inputs
    from ringspan.plan.layout import Layout

__all__ = [
    "AlongOption",
    "BlockedOption",
    "CausalOption",
    "FoldOption",
    "GridOption",
    "PatternOption",
    "RatesOption",
    "SegmentsOption",
    "grid_from",
    "layout_from",
    "pattern_from",
    "print_json",
    "tokens_from",
]

PatternOption = Annotated[
    str | None,
    typer.Option("--pattern", help="Any pattern as in Python, such as 'Neighborhood(7)'."),
]
SegmentsOption = Annotated[
    str | None, typer.Option("--segments", help="Segment lengths, such as 2048,4096.")
]
RatesOption = Annotated[str | None, typer.Option("--rates", help="Dilation rates, such as 1,2.")]
AlongOption = Annotated[
    str | None, typer.Option("--along", help="Take the pattern along this ordering.")
]
FoldOption = Annotated[
    bool, typer.Option("--fold", help="With --along: fold a plain sequence on a grid.")
]
BlockedOption = Annotated[
    bool, typer.Option("--blocked-offsets", help="torchscale's head offsets, not the paper's.")
]
GridOption = Annotated[
    str | None, typer.Option("--grid", help="Tokens on a grid, such as 64x64 or 8x32x32.")
]
CausalOption = Annotated[
    bool, typer.Option("--causal/--full", help="Whether a token sees earlier ones only.")
]


def pattern_from(
    written: str | None,
    segments: str | None,
    rates: str | None,
    along: str | None,
    fold: bool,
    blocked: bool,
) -> Pattern:
    """The pattern that is written; `Dilated` where segments are given; otherwise `Dense`."""
    from ringspan.patterns import Along, Dense, Dilated
    from ringspan.patterns.written import pattern_written

    if written is not None and segments is not None:
        raise InvalidArgument("--pattern", expected="no --segments beside it", got=repr(written))
    if segments is None:
        options = {"--rates": rates, "--along": along, "--fold": fold, "--blocked-offsets": blocked}
        for name, value in options.items():
            if value not in (None, False):
                got = "a dense pattern" if written is None else f"--pattern {written!r}"
                raise InvalidArgument(name, expected="--segments beside it", got=got)
        return Dense() if written is None else pattern_written(written)
    if fold and along is None:
        raise InvalidArgument("--fold", expected="--along beside it", got="--fold alone")
    lengths = _integers("--segments", segments, ",")
    return Dilated(
        lengths,
        (1,) * len(lengths) if rates is None else _integers("--rates", rates, ","),
        head_offsets="blocked" if blocked else "modulo",
        along=None if along is None else Along(along, fold),
    )


def tokens_from(n: int | None, grid: str | None) -> Tokens:
    """A plain sequence of `n` tokens, or a grid; one of them must be given."""
    from ringspan.contracts.tokens import Sequence

    if grid is not None:
        tokens = grid_from(grid)
        if n not in (None, tokens.N):
            raise InvalidArgument("--n", expected=f"{tokens.N} for --grid {grid}", got=str(n))
        return tokens
    if n is None:
        raise InvalidArgument("--n", expected="a number of tokens, or --grid", got="neither")
    return Sequence(n)


def layout_from(
    tokens: Tokens,
    world_size: int,
    ordering: str | None,
    weights: str | None,
    pattern: Pattern,
    causal: bool,
    inputs: Inputs,
) -> Layout:
    """The layout that is asked for, or the one that serves the problem best."""
    from ringspan.plan.balance import choose_layout
    from ringspan.plan.layout import Layout

    speeds = None if weights is None else _numbers("--weights", weights)
    if ordering is not None:
        return Layout(tokens, world_size, ordering, speeds)
    return choose_layout(
        tokens,
        world_size,
        pattern=pattern,
        causal=causal,
        weights=speeds,
        heads=inputs.heads,
        kv_heads=inputs.kv_heads,
    )


def grid_from(text: str) -> Grid:
    """`"64x64"` as a `Grid`."""
    from ringspan.contracts.tokens import Grid

    return Grid(*_integers("--grid", text, "x"))


def _integers(name: str, text: str, separator: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(separator))
    except ValueError:
        raise InvalidArgument(
            name, expected=f"integers with {separator!r} between them", got=repr(text)
        ) from None


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InvalidArgument(
            name, expected="numbers with ',' between them", got=repr(text)
        ) from None


def print_json(content: dict[str, Any]) -> None:
    """One JSON document on standard output."""
    typer.echo(json.dumps(content, indent=2))
