"""`ringspan plot`: patterns, orderings, and what an ordering does to a pattern."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ringspan.cli.extras import require
from ringspan.cli.problem import (
    AlongOption,
    AxesOption,
    BlockedOption,
    BlockSizeOption,
    CausalOption,
    ChunkOption,
    FoldOption,
    GridOption,
    OrderingsOption,
    PatternOption,
    PointsOption,
    RatesOption,
    SegmentsOption,
    integers_from,
    names_from,
    ordering_from,
    pattern_from,
    placed_from,
    tokens_from,
)
from ringspan.contracts.errors import InvalidArgument

if TYPE_CHECKING:
    import numpy.typing as npt

    from ringspan.contracts.pattern import Pattern

__all__ = ["app"]

app = typer.Typer(help="Pictures: PNG or SVG, by the suffix of --out.", no_args_is_help=True)


@app.command()
def pattern(
    n: Annotated[int | None, typer.Option("--n", help="Tokens; default 512.")] = None,
    grid: GridOption = None,
    points: PointsOption = None,
    written: PatternOption = None,
    segments: SegmentsOption = None,
    rates: RatesOption = None,
    blocked: BlockedOption = False,
    along: AlongOption = None,
    fold: FoldOption = False,
    causal: CausalOption = False,
    kv_heads: Annotated[int, typer.Option(help="Key/value heads.")] = 1,
    head: Annotated[int, typer.Option(help="Which of them is drawn.")] = 0,
    out: Annotated[Path, typer.Option(help="The picture's file.")] = Path("pattern.png"),
) -> None:
    """Draw which keys (across) each query (down) sees; without --pattern or --segments: all.

    Up to 1,048,576 tokens.
    """
    require("matplotlib")
    from ringspan import pictures

    pictures.check_out(out)
    if kv_heads < 1:
        raise InvalidArgument("--kv-heads", expected="an integer >= 1", got=str(kv_heads))
    if not 0 <= head < kv_heads:
        raise InvalidArgument("--head", expected=f"0 .. {kv_heads - 1}", got=str(head))
    tokens = tokens_from(512 if (n, grid, points) == (None,) * 3 else n, grid, points)
    figure = pictures.pattern_picture(
        pattern_from(written, segments, rates, along, fold, blocked),
        tokens,
        kv_heads=kv_heads,
        head=head,
        causal=causal,
    )
    pictures.save(figure, out)
    typer.echo(f"Wrote {out}")


@app.command()
def ordering(
    name: Annotated[str, typer.Argument(help="Such as hilbert, morton or snake.")],
    grid: GridOption = None,
    points: PointsOption = None,
    axes: AxesOption = None,
    chunk: ChunkOption = None,
    out: Annotated[Path, typer.Option(help="The picture's file.")] = Path("ordering.png"),
) -> None:
    """Draw the path of an ordering through up to 262,144 points; without --grid: 32x32.

    Steps that lead to no neighbour are thin and faint.
    """
    require("matplotlib")
    from ringspan import pictures

    pictures.check_out(out)
    along = ordering_from(name, axes, chunk)
    assert along is not None
    tokens = placed_from(grid, points, default="32x32")
    pictures.save(pictures.ordering_picture(along, tokens), out)
    typer.echo(f"Wrote {out}")


@app.command()
def blocks(
    n: Annotated[int | None, typer.Option("--n", help="Tokens of a plain sequence.")] = None,
    grid: GridOption = None,
    points: PointsOption = None,
    written: PatternOption = None,
    block_size: BlockSizeOption = 64,
    orderings: OrderingsOption = None,
    causal: CausalOption = False,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 1,
    out: Annotated[Path, typer.Option(help="The picture's file.")] = Path("blocks.png"),
) -> None:
    """Draw which blocks of stored tokens see which, under several orderings side by side.

    Without --orderings: all that are installed and serve the tokens. Up to 2,097,152 tokens.
    """
    require("matplotlib")
    from ringspan import pictures

    pictures.check_out(out)
    tokens = tokens_from(n, grid, points)
    figure = pictures.blocks_picture(
        _pattern_of(written),
        tokens,
        block_size=block_size,
        orderings=names_from(orderings),
        causal=causal,
        heads=heads,
    )
    pictures.save(figure, out)
    typer.echo(f"Wrote {out}")


@app.command()
def coverage(
    query: Annotated[str, typer.Option(help="The query's point, such as 32,32.")],
    grid: GridOption = None,
    points: PointsOption = None,
    written: PatternOption = None,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 1,
    head: Annotated[str, typer.Option(help="Which of them is drawn; all: their sum.")] = "all",
    causal: CausalOption = False,
    orderings: OrderingsOption = None,
    image: Annotated[
        Path | None, typer.Option(help="What the tokens show, drawn in grey underneath.")
    ] = None,
    out: Annotated[Path, typer.Option(help="The picture's file.")] = Path("coverage.png"),
) -> None:
    """Draw where one query looks, on up to 1,048,576 tokens with coordinates.

    --orderings draws the pattern along each of these, in place of its own, side by side.
    """
    require("matplotlib")
    from ringspan import pictures

    pictures.check_out(out)
    figure = pictures.coverage_picture(
        _pattern_of(written),
        placed_from(grid, points),
        integers_from("--query", query, ","),
        heads=heads,
        head=None if head == "all" else _head(head, heads),
        causal=causal,
        orderings=names_from(orderings),
        image=None if image is None else _image(image),
    )
    pictures.save(figure, out)
    typer.echo(f"Wrote {out}")


def _pattern_of(written: str | None) -> Pattern:
    if written is None:
        raise InvalidArgument(
            "--pattern", expected="a pattern, such as 'Neighborhood(7)'", got="none"
        )
    return pattern_from(written, None, None, None, False, False)


def _head(text: str, heads: int) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) >= heads:
        raise InvalidArgument("--head", expected=f"all or 0 .. {heads - 1}", got=repr(text))
    return int(text)


def _image(path: Path) -> npt.NDArray[Any]:
    from matplotlib.image import imread

    try:
        return imread(path)
    except OSError as error:
        reason = error.strerror or "no image that can be read"
        raise InvalidArgument(
            "--image", expected="a file that can be read", got=f"{path}: {reason}"
        ) from error
    except (ImportError, SyntaxError, ValueError) as error:
        # PNG is read by matplotlib itself, other formats need Pillow.
        raise InvalidArgument("--image", expected="a PNG file", got=f"{path}: {error}") from error
