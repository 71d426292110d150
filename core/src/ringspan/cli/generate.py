"""`ringspan generate`: text from the model of a run of the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ringspan.cli.extras import require

__all__ = ["generate"]

_INTERRUPTED = 130


def generate(
    run: Annotated[Path, typer.Argument(help="Folder of a run of `ringspan demo`.")] = Path(
        "demo-run"
    ),
    prompt: Annotated[str, typer.Option(help="What the text begins with.")] = "def ",
    length: Annotated[int, typer.Option(help="Bytes to write after the prompt.")] = 400,
    temperature: Annotated[
        float, typer.Option(help="0: always the likeliest byte; higher: more surprising.")
    ] = 0.8,
    top_k: Annotated[
        int | None, typer.Option(help="Draw among this many likeliest bytes only.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Write text with the demo's model, byte by byte, from caches of bounded size.

    The text goes to the standard output, line by line. Ctrl-C stops after what is written so far.
    """
    require("safetensors")
    from rich.console import Console

    from ringspan.demo.interrupt import Interrupts
    from ringspan.demo.writing import Writing

    writing = Writing.begin(
        run, prompt, length=length, temperature=temperature, top_k=top_k, seed=seed
    )
    told = Console(stderr=True, highlight=False, soft_wrap=True)
    # Noted and not raised: an exception inside a callback of torch would be lost.
    with Interrupts() as interrupts:
        complete = writing.to(Console(highlight=False), interrupts)
    if not complete:
        told.print(f"Stopped after {writing.written:,} bytes.")
        raise typer.Exit(_INTERRUPTED)
    told.print(writing.summary)
