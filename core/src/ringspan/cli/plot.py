"""`ringspan plot`: a pattern as a mask picture, an ordering as a curve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ringspan.cli.extras import require
from ringspan.cli.problem import (
    AlongOption,
    BlockedOption,
    CausalOption,
    FoldOption,
    GridOption,
    PatternOption,
    RatesOption,
    SegmentsOption,
    grid_from,
    pattern_from,
    tokens_from,
)
from ringspan.contracts.errors import InvalidArgument

__all__ = ["app"]

app = typer.Typer(help="Pictures: PNG or SVG, by the suffix of --out.", no_args_is_help=True)


@app.command()
def pattern(
    n: Annotated[int | None, typer.Option("--n", help="Tokens; default 512.")] = None,
    grid: GridOption = None,
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
    tokens = tokens_from(512 if n is None and grid is None else n, grid)
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
    grid: Annotated[str, typer.Option("--grid", help="Such as 32x32 or 8x8x8.")] = "32x32",
    out: Annotated[Path, typer.Option(help="The picture's file.")] = Path("ordering.png"),
) -> None:
    """Draw the path of an ordering through a grid of up to 262,144 points."""
    require("matplotlib")
    from ringspan import pictures

    pictures.check_out(out)
    pictures.save(pictures.ordering_picture(name, grid_from(grid)), out)
    typer.echo(f"Wrote {out}")
