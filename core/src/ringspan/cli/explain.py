"""`ringspan explain`: what a call would do, without doing it."""

from __future__ import annotations

from typing import Annotated

import typer

from ringspan.cli.problem import (
    AlongOption,
    AxesOption,
    BlockedOption,
    BlockSizeOption,
    CausalOption,
    ChunkOption,
    FoldOption,
    GridOption,
    PatternOption,
    PointsOption,
    RatesOption,
    SegmentsOption,
    layout_from,
    ordering_from,
    pattern_from,
    print_json,
    tokens_from,
)
from ringspan.contracts.errors import InvalidArgument

__all__ = ["explain"]


def explain(
    n: Annotated[int | None, typer.Option("--n", help="Tokens.")] = None,
    grid: GridOption = None,
    points: PointsOption = None,
    heads: Annotated[int, typer.Option(help="Query heads.")] = 8,
    kv_heads: Annotated[int | None, typer.Option(help="Key/value heads; default: heads.")] = None,
    head_dim: Annotated[int, typer.Option(help="Dimensions of a query and key head.")] = 64,
    value_head_dim: Annotated[
        int | None, typer.Option(help="Dimensions of a value head; default: head-dim.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences.")] = 1,
    written: PatternOption = None,
    segments: SegmentsOption = None,
    rates: RatesOption = None,
    dense: Annotated[bool, typer.Option("--dense", help="Every token sees every token.")] = False,
    blocked: BlockedOption = False,
    along: AlongOption = None,
    fold: FoldOption = False,
    causal: CausalOption = False,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, float32 or float64.")] = "float32",
    device: Annotated[str, typer.Option(help="Such as cpu or cuda:0.")] = "cpu",
    world_size: Annotated[
        int, typer.Option("--world-size", "--ranks", help="Ranks in the ring.")
    ] = 1,
    ordering: Annotated[
        str | None,
        typer.Option(help="Store tokens in this order; default: by position, or zigzag if better."),
    ] = None,
    axes: AxesOption = None,
    chunk: ChunkOption = None,
    block_size: BlockSizeOption = 64,
    weights: Annotated[
        str | None, typer.Option(help="Relative speeds of the ranks, such as 1,1,2.5.")
    ] = None,
    backend: Annotated[str | None, typer.Option(help="Default: from configuration.")] = None,
    communicator: Annotated[str | None, typer.Option(help="Default: from configuration.")] = None,
    inference: Annotated[bool, typer.Option("--inference", help="No gradient needed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Plan, tiles, FLOPs, bytes and memory per rank, the chosen backend, and why not the others.

    Exits with 1 where no provider can serve the problem.
    """
    import ringspan as rs

    given = (("--segments", segments), ("--pattern", written), ("--dense", dense or None))
    said = [name for name, value in given if value is not None]
    if len(said) != 1:
        raise InvalidArgument(
            "--segments",
            expected="either --segments with --rates, or --pattern, or --dense",
            got=" and ".join(said) or "none of them",
        )
    tokens = tokens_from(n, grid, points)
    pattern = pattern_from(written, segments, rates, along, fold, blocked)
    inputs = rs.Inputs(
        N=tokens.N,
        heads=heads,
        head_dim=head_dim,
        kv_heads=kv_heads,
        value_head_dim=value_head_dim,
        batch=batch,
        dtype=dtype,
        device=device,
        needs_backward=not inference,
    )
    explanation = rs.explain(
        inputs,
        pattern=pattern,
        causal=causal,
        tokens=tokens,
        layout=layout_from(
            tokens,
            world_size,
            ordering_from(ordering, axes, chunk),
            weights,
            pattern,
            causal,
            inputs,
            block_size,
        ),
        backend=backend,
        communicator=communicator,
    )
    if as_json:
        print_json(explanation.as_dict())
    else:
        typer.echo(str(explanation))
    if not explanation.can_run:
        raise typer.Exit(1)
