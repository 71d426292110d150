"""Options that describe an attention problem, turned into Ringspan's own objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    from ringspan.contracts.pattern import Pattern
    from ringspan.contracts.tokens import Coordinates, Grid, Tokens
    from ringspan.engine.explanation import Inputs
    from ringspan.patterns.along import Along
    from ringspan.plan.layout import Layout

__all__ = [
    "AlongOption",
    "AxesOption",
    "BlockSizeOption",
    "BlockedOption",
    "CausalOption",
    "ChunkOption",
    "FoldOption",
    "GridOption",
    "OrderingsOption",
    "PatternOption",
    "PointsOption",
    "RatesOption",
    "SegmentsOption",
    "grid_from",
    "integers_from",
    "layout_from",
    "names_from",
    "ordering_from",
    "pattern_from",
    "placed_from",
    "points_from",
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

PointsOption = Annotated[
    Path | None,
    typer.Option(
        "--points",
        # No square brackets: in help they are markup.
        help="In place of --grid: integer points, N x 2 or N x 3, as .npy or .csv without a header "
        "line, or a .npy mask of booleans, h x w or d x h x w.",
    ),
]
AxesOption = Annotated[
    str | None,
    typer.Option("--axes", help="The axes in the order that the ordering is to see, such as 1,0."),
]
ChunkOption = Annotated[
    int | None, typer.Option("--chunk", help="Begin the curve anew after every so many tokens.")
]
BlockSizeOption = Annotated[int, typer.Option("--block-size", help="Tokens of a block.")]
OrderingsOption = Annotated[
    str | None, typer.Option("--orderings", help="Names, such as row-major,hilbert.")
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
    lengths = integers_from("--segments", segments, ",")
    return Dilated(
        lengths,
        (1,) * len(lengths) if rates is None else integers_from("--rates", rates, ","),
        head_offsets="blocked" if blocked else "modulo",
        along=None if along is None else Along(along, fold),
    )


def tokens_from(n: int | None, grid: str | None, points: Path | None = None) -> Tokens:
    """A plain sequence of `n` tokens, a grid, or points; one of them must be given."""
    from ringspan.contracts.tokens import Sequence

    if points is not None:
        if n is not None:
            raise InvalidArgument("--points", expected="no --n beside it", got=f"--n {n}")
        return placed_from(grid, points)
    if grid is not None:
        tokens = grid_from(grid)
        if n not in (None, tokens.N):
            raise InvalidArgument("--n", expected=f"{tokens.N} for --grid {grid}", got=str(n))
        return tokens
    if n is None:
        raise InvalidArgument(
            "--n", expected="a number of tokens, --grid or --points", got="none of them"
        )
    return Sequence(n)


def placed_from(grid: str | None, points: Path | None, default: str | None = None) -> Tokens:
    """Tokens with coordinates: a grid, or the points of a file; one of them, or `default`."""
    if grid is not None and points is not None:
        raise InvalidArgument("--points", expected="no --grid beside it", got=f"--grid {grid}")
    if points is not None:
        return points_from(points)
    if grid is None and default is None:
        raise InvalidArgument("--grid", expected="a grid, or --points", got="neither")
    return grid_from(str(default if grid is None else grid))


def points_from(path: Path) -> Coordinates:
    """The points in a file: rows of integers, or the cells of a mask that are True."""
    import numpy as np

    from ringspan.contracts.tokens import Coordinates

    expected = "a .npy or .csv file of integer points, or a .npy mask of booleans"
    if path.suffix.lower() not in (".npy", ".csv"):
        raise InvalidArgument("--points", expected=expected, got=str(path))
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        else:
            array = np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
    except OSError as error:
        raise InvalidArgument(
            "--points", expected="a file that can be read", got=f"{path}: {error.strerror}"
        ) from error
    except (EOFError, ValueError) as error:
        raise InvalidArgument(
            "--points",
            expected=expected,
            got=f"{path}, which is none",
            remedy="A .csv has a line for each point and no header line"
            if path.suffix.lower() == ".csv"
            else "",
        ) from error
    return Coordinates(np.argwhere(array) if array.dtype == np.bool_ else array)


def names_from(orderings: str | None) -> tuple[str, ...] | None:
    """The names of orderings, each once."""
    if orderings is None:
        return None
    names = tuple(name.strip() for name in orderings.split(","))
    if not all(names) or len(set(names)) < len(names):
        raise InvalidArgument(
            "--orderings",
            expected="different names with ',' between them, such as row-major,hilbert",
            got=repr(orderings),
        )
    return names


def ordering_from(name: str | None, axes: str | None, chunk: int | None) -> Along | None:
    """An ordering with what it is to see and where it begins anew; None without a name."""
    from ringspan.patterns.along import Along

    if name is not None:
        return Along(
            name, axes=None if axes is None else integers_from("--axes", axes, ","), chunk=chunk
        )
    for option, value in {"--axes": axes, "--chunk": chunk}.items():
        if value is not None:
            raise InvalidArgument(option, expected="--ordering beside it", got="none")
    return None


def layout_from(
    tokens: Tokens,
    world_size: int,
    ordering: Along | None,
    weights: str | None,
    pattern: Pattern,
    causal: bool,
    inputs: Inputs,
    block_size: int,
) -> Layout:
    """The layout that is asked for, or the one that serves the problem best."""
    from ringspan.plan.balance import choose_layout
    from ringspan.plan.layout import Layout

    speeds = None if weights is None else _numbers("--weights", weights)
    if ordering is not None:
        return Layout(tokens, world_size, ordering, speeds, block_size=block_size)
    best = choose_layout(
        tokens,
        world_size,
        pattern=pattern,
        causal=causal,
        weights=speeds,
        heads=inputs.heads,
        kv_heads=inputs.kv_heads,
    )
    return Layout(tokens, world_size, best.along, speeds, block_size=block_size, reason=best.reason)


def grid_from(text: str) -> Grid:
    """`"64x64"` as a `Grid`."""
    from ringspan.contracts.tokens import Grid

    return Grid(*integers_from("--grid", text, "x"))


def integers_from(name: str, text: str, separator: str) -> tuple[int, ...]:
    """Integers with a separator between them, for the option `name`."""
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
